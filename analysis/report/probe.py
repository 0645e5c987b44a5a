"""Page of a probe: whether choosing prompts by samples of them is worth it, and the evidence."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.figures.drawing import draw_panel
from analysis.figures.probing import parallel_panel, probe_panels
from analysis.figures.short_page import short_page
from analysis.formats import WideTable, number
from analysis.probing.summary import choice_text, facts

_LINES = (
    "Where the lines are drawn comes from reasoning (analysis/probing/verdict.py). On the study's testbeds no rule "
    "that samples candidates was shown to be worth more than larger groups, so that no line could be fitted "
    "(docs/study.md). Spread is what a group has to teach, not what it taught: adagrpo oracle measures that."
)


def probe_page(name: str, content: Mapping[str, Any]) -> str:
    """Render the page of a model's probe from the content of its JSON file."""
    found, cost = content["summary"], content["cost"]
    verdict = found["verdict"]
    introduction = [
        f"Profile {content['profile']}, untrained: {found['prompts']} validation prompts with {found['noises']} noises "
        f"each, and the groups of one rollout of each: {content['pictures']:,} pictures, "
        f"{number(content['seconds'], 0)} seconds of sampling and scoring.",
        f"To read samples of {cost['candidates']} candidates adds {cost['candidate_forwards']:,} forwards "
        f"({cost['candidate_forwards'] / cost['forwards']:.0%}) to the {cost['forwards']:,} of a prompt that is "
        f"trained on, and {cost['candidates'] - 1} reward calls. The same buys groups of {cost['larger_group']} "
        f"instead of {cost['group_size']}, whose updates have {number(100 * found['siblings_gain'], 0)} % more signal "
        f"beside their noise.",
    ]
    conclusion = [f"Choosing prompts by samples: {verdict['answer']}. {verdict['reason'].capitalize()}.", _LINES]
    rows = list(facts(found, found["judges"]).items())
    tables = [
        WideTable("What was measured", ["", "value"], [(label, [text]) for label, text in rows]),
        WideTable(
            "What rules that need no history choose: spread of the prompt's group ± 2 standard errors, its reward, "
            "share of its groups without spread, extra forwards",
            ["rule", "chosen"],
            [(rule, [choice_text(one)]) for rule, one in found["choices"].items()],
        ),
    ]
    spreads = np.array(content["groups"], dtype=float).std(axis=2, ddof=1)
    rewards, stream = (np.array(values, dtype=float) for values in (content["rewards"], content["stream"]))
    panels = probe_panels(rewards, spreads, found["choices"], cost, stream)
    if gradients := content.get("gradients"):
        panels.append(parallel_panel(gradients["cosines"]))
        signal = "the signal of updates on random prompts is lost in their noise"
        if math.isfinite(updates := gradients["noise"]):
            signal = f"updates on random prompts have as much signal as noise once {number(updates, 0)} are averaged"
        introduction.append(f"Gradients of {gradients['rounds']} rounds of candidates; {signal}.")
    title = f"Is choosing prompts worth it? {name}"
    return short_page(title, title, "probe", introduction, conclusion, tables, [draw_panel(panel) for panel in panels])
