"""Model card of an exported run: description, usage, training, measurements."""

from typing import Any, Literal

import yaml

from analysis.formats import markdown_table
from harness.config import ROOT, RunConfig
from harness.foundation.files import read_text
from harness.foundation.names import FUSIONS, METHODS
from harness.foundation.records import read_lines
from harness.models.pipelines.loading import DTYPES
from harness.models.pipelines.locate import find_local
from harness.models.pipelines.published import QWEN_IMAGE, Licence, find_published
from harness.runs.directory import RunDirectory

Form = Literal["lora", "transformer", "pipeline"]
"""Kind of an export: adapters alone, a whole transformer, or the whole pipeline."""

_LOADING = {
    "lora": 'pipeline = DiffusionPipeline.from_pretrained("{base}", torch_dtype={dtype})\n'
    'pipeline.load_lora_weights("this/folder")',
    "transformer": 'pipeline = DiffusionPipeline.from_pretrained("{base}", torch_dtype={dtype})\n'
    "pipeline.transformer = type(pipeline.transformer).from_pretrained(\n"
    '    "this/folder", subfolder="transformer", torch_dtype={dtype}\n)',
    "pipeline": 'pipeline = DiffusionPipeline.from_pretrained("this/folder", torch_dtype={dtype})',
}

_BASE_WEIGHTS = {"nf4": "4 bits (NF4) in training and measurements; the code above loads them whole"}

_PAGE = """\
---
{front}---

# {method} on {base}

{what} {base}, trained by reinforcement learning ({method}) for {length} iterations to raise the reward {reward}. Run
`{run_id}`.

## Use

```python
{imports}import torch
from diffusers import DiffusionPipeline

{loading}
picture = pipeline(
    prompt, height={height}, width={width}, num_inference_steps={num_steps},
    {guidance}, max_sequence_length={model.max_sequence_length}
).images[0]
```

{schedule}

## Training

{settings}

All settings are in `config.yaml`.

## Measured

{measured}
"""


def model_card(run: RunDirectory, form: Form, licence: Licence) -> str:
    """Text of an export's README.md: YAML front matter as the hub reads it, then Markdown.

    Args:
        run: run whose checkpoint was exported.
        form: kind of the export.
        licence: licence of the export.
    """
    config, done = run.config, run.status()["iteration"]
    model, base = config.model, _base_of(config)
    # In 16 bits the rounding of a merged weight is larger than what a short training adds to it.
    precision = "fp32" if form == "pipeline" else model.precision
    dtype = str(DTYPES[precision])
    index = (find_local(model.path) or ROOT / model.path) / "model_index.json"
    described = read_text(index) if index.is_file() else ""
    is_miniature = "harness.models.miniature" in described
    is_qwen_image = '"QwenImagePipeline"' in described or find_published(model.path) is QWEN_IMAGE
    return _PAGE.format(
        front=yaml.safe_dump(_front_matter(config, form, licence), sort_keys=False),
        method=_method_of(config),
        base=base,
        what={"lora": "LoRA adapters for", "transformer": "A transformer for", "pipeline": "A pipeline made from"}[
            form
        ],
        length=done if done == config.iterations else f"{done} of {config.iterations}",
        reward=" + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in config.reward.items()),
        run_id=run.run_id,
        # Diffusers takes a class from outside its own library only from a module that has been imported.
        imports="import harness.models.miniature  # of the project adagrpo\n" if is_miniature else "",
        loading=_LOADING[form].format(base=base, dtype=dtype),
        model=model,
        height=config.evaluation.height or model.height,
        width=config.evaluation.width or model.width,
        num_steps=config.evaluation.num_steps or model.num_steps,
        # Qwen-Image's pipeline ignores guidance_scale, and is guided only if it has a negative prompt.
        guidance=f'true_cfg_scale={model.guidance}, negative_prompt=""'
        if is_qwen_image
        else f"guidance_scale={model.guidance}",
        schedule=_schedule(config, form),
        settings=_settings(config),
        measured=_measured(run),
    )


def _front_matter(config: RunConfig, form: Form, licence: Licence) -> dict[str, Any]:
    tags = ["text-to-image", "diffusers", "grpo", config.method.kernel.replace("_", "-")]
    terms = {"license": licence.identifier, "license_name": licence.name, "license_link": licence.link}
    return {
        "base_model": _base_of(config),
        "base_model_relation": "adapter" if form == "lora" else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [*tags, *(["lora"] if form == "lora" else []), *(["adagrpo"] if _is_adagrpo(config) else [])],
        **{key: value for key, value in terms.items() if value is not None},
    }


def _schedule(config: RunConfig, form: Form) -> str:
    if config.model.shift == "dynamic":
        return "Trained with the scheduler's dynamic, resolution-dependent shift."
    if form == "pipeline":
        return f"Its scheduler has the static sigma shift of the training, {config.model.shift:g}."
    return (
        f"Trained with a static sigma shift of {config.model.shift:g}; if the pipeline's scheduler has another: "
        f"`pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift="
        f"{config.model.shift:g}, use_dynamic_shifting=False)`."
    )


def _settings(config: RunConfig) -> str:
    rollout, optimizer, fusion = config.rollout, config.optimizer, config.fusion
    lora = f", rank {optimizer.lora.rank}, alpha {optimizer.lora.alpha:g}" if optimizer.tuning == "lora" else ""
    rows = {
        "base weights": _BASE_WEIGHTS.get(config.model.quantise, config.model.precision),
        "step": f"{config.method.kernel}, eta {config.method.eta:g}",
        "prompt selection": config.selection,
        "advantage fusion": f"{fusion.kind}, weight {fusion.weight:g}" if fusion.enabled else "none",
        "rollout": f"{rollout.kind}, steps {', '.join(map(str, rollout.branch_indices))} of {config.model.num_steps}",
        "candidates, group, prompts per update": f"{rollout.candidates}, {rollout.group_size}, "
        f"{rollout.prompts_per_iteration}",
        "tuning": f"{optimizer.tuning}{lora}, learning rate {optimizer.learning_rate:g}",
        "size in training": f"{config.model.width} x {config.model.height} pixels",
        "seed": str(config.seed),
    }
    return markdown_table(["setting", "value"], [[key, value] for key, value in rows.items()])


def _measured(run: RunDirectory) -> str:
    """A table for each prompt list, with each metric at the first and at the last evaluation."""
    lines = read_lines(run.folder / "eval.jsonl")
    records = [line for line in lines if line["iteration"] <= run.status()["iteration"]]
    tables = []
    for split in ("test", "validation"):
        of_split = [record for record in records if record["split"] == split]
        if not of_split:
            continue
        shown = of_split if len(of_split) == 1 else [of_split[0], of_split[-1]]
        heads = ["metric", *("untrained" if r["iteration"] == 0 else f"iteration {r['iteration']}" for r in shown)]
        rows = [[metric, *(f"{r['metrics'][metric]:.4f}" for r in shown)] for metric in shown[-1]["metrics"]]
        last = shown[-1]
        drawn = f"{last['num_prompts']} {split} prompts, pictures of each: {last['num_noises']}"
        how = "sampled deterministically, with the steps and size above"
        tables.append(f"By run `{run.run_id}` on {drawn}, {how}:\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(tables)


def _method_of(config: RunConfig) -> str:
    name = METHODS.get(config.method.kernel, config.method.kernel)
    if _is_adagrpo(config):
        return f"{name} + AdaGRPO"
    selection = "" if config.selection == "random" else f" + {config.selection} prompts"
    fusion = f" + {FUSIONS.get(config.fusion.kind, config.fusion.kind)}" if config.fusion.enabled else ""
    return f"{name}{selection}{fusion}"


def _is_adagrpo(config: RunConfig) -> bool:
    return config.selection == "curriculum" and config.fusion.enabled and config.fusion.kind == "fused"


def _base_of(config: RunConfig) -> str:
    published = find_published(config.model.path)
    return config.model.path if published is None else published.repository
