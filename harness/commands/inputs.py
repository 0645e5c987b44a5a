"""Inputs of runs: prompt lists, rewards' weights and servers, the miniature's models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from harness.commands import command, say
from harness.foundation.errors import ConfigError, HarnessError
from harness.foundation.plugins import is_reference


@command
def prompts(
    action: Annotated[Literal["import"], "action to perform"],
    files: Annotated[Sequence[Path], "prompt files: .txt, .csv, .tsv, .json, .jsonl or .ndjson; see docs/prompts.md"],
    *,
    output: Annotated[Path, "folder for the train, validation and test lists"],
    shares: Annotated[str, "percentages of prompts for train, validation and test"] = "90,5,5",
    exclude: Annotated[tuple[Path, ...], "file of prompts to leave out; may be repeated"] = (),
    column: Annotated[str | None, "table column or JSON key of the prompt (default: prompt)"] = None,
    max_characters: Annotated[int | None, "maximum length; longer prompts are left out (default: 2000)"] = None,
) -> int:
    """Make train, validation and test lists from prompt files: check, deduplicate and split them by hash.

    Example: ``adagrpo prompts import mine.txt --output data/mine``
    """
    from harness.prompts.imported import Shares, import_prompts, write_lists
    from harness.prompts.lists import MAX_CHARACTERS

    limit = MAX_CHARACTERS if max_characters is None else max_characters
    if not 1 <= limit <= MAX_CHARACTERS:
        raise ConfigError(f"--max-characters {limit}: must be 1 to {MAX_CHARACTERS}")
    imported = import_prompts(files, Shares.parse(shares), exclude=exclude, column=column, max_characters=limit)
    paths = write_lists(imported.lists, output)
    print("\n".join([*imported.summary(), "in a configuration:", "prompts:"]))
    for split, path in zip(imported.lists, paths, strict=True):
        print(f"  {split}: {path.resolve()}")
    return 0


@command
def completion(shell: Annotated[Literal["bash", "zsh", "tcsh"], "shell to write the script for"]) -> int:
    """Print the script with which a shell completes commands and options.

    Example: ``adagrpo completion bash > ~/.local/share/bash-completion/completions/adagrpo``
    """
    import shtab

    from harness.commands import make_parser

    print(shtab.complete(make_parser(), shell))
    return 0


@command
def fetch_assets() -> int:
    """Download the text recognisers that serve as rewards, if they are missing.

    Example: ``adagrpo fetch-assets``
    """
    from harness.rewards.files.assets import fetch_assets as fetch

    fetch()
    return 0


@command
def serve_reward(
    name: Annotated[str, "name of the reward, such as hpsv3"],
    settings: Annotated[Sequence[str], "settings of the reward, such as path=HPSv3.safetensors device=cuda:1"] = (),
    *,
    port: Annotated[int, "port to listen at; 0 takes a free one"] = 8500,
    host: Annotated[str, "address to listen at (default: 127.0.0.1, this machine alone)"] = "127.0.0.1",
    threads: Annotated[int, "number of CPU threads of the model", 1] = 1,
) -> int:
    """Serve a reward's model to runs that use the backend url.

    Example: ``adagrpo serve-reward ocr --port 8500``
    """
    import os
    import secrets

    import torch

    from harness.config import RewardConfig, check_overrides, parse_overrides, validated
    from harness.rewards import build_reward
    from harness.rewards.remote.server import RewardServer
    from harness.rewards.remote.wire import TOKEN_VARIABLE, is_loopback

    torch.set_num_threads(threads)
    check_overrides(settings)
    own = validated(RewardConfig, parse_overrides(settings), "settings")
    if is_reference(name) or own.plugin:
        raise ConfigError(
            f"serve-reward: {own.plugin or name} is a plug-in, which every run computes itself: name it in a run's "
            "reward; it may ask a server of your own itself, see docs/extend.md"
        )
    if own.changed & {"offset", "scale"}:
        raise ConfigError("serve-reward: offset and scale are for the run that trains on the reward; set them there")
    try:
        reward = build_reward(name, threads, own)
        reward.check_ready()
        given = os.environ.get(TOKEN_VARIABLE)
        token = given or secrets.token_urlsafe()
        server = RewardServer(reward, host, port, token)
    except (ValueError, HarnessError, OverflowError) as error:
        raise ConfigError(f"serve-reward: {error}") from None
    except OSError as error:
        raise ConfigError(f"serve-reward: cannot listen at {host}:{port}: {error.strerror}") from None
    address = f"http://{host}:{server.server_port}"
    heard = "only this machine reaches it" if is_loopback(host) else "all who reach this machine can try, unencrypted"
    told = "the token of your environment" if given else f"{TOKEN_VARIABLE}={token} in their environment"
    say(
        f"serving {name} ({server.about['fingerprint'][:12]}) at {address}; for runs: "
        f"rewards.{name}.backend=url rewards.{name}.url={address}; with {told}; {heard}"
    )
    with server:
        try:
            server.serve_forever()
        finally:
            reward.close()
    return 0


@command
def pretrain_miniature(
    *,
    recipe: Annotated[str, "name of the recipe: strikes (makes base and weak), letters-luck or letters"],
    output: Annotated[Path, "folder for models and training states"],
    threads: Annotated[int, "number of CPU threads", 1] = 1,
) -> int:
    """Pretrain a model of the miniature by its recipe, see docs/testbed.md; resumable.

    Example: ``adagrpo pretrain-miniature --recipe strikes --output base``
    """
    from harness.config import nearest
    from harness.models.miniature.pretrain import pretrain
    from harness.models.miniature.recipes import RECIPES

    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe} is unknown; {nearest(recipe, list(RECIPES))}")
    for line in pretrain(RECIPES[recipe], output, threads):
        say(line)
    return 0


@command
def new(
    kind: Annotated[Literal["selection", "advantage", "reward", "kernel"], "kind of plug-in"],
    name: Annotated[str, "name of the object, such as SecondHardest"],
    *,
    folder: Annotated[Path, "folder to write to"] = Path("."),
) -> int:
    """Write a working plug-in to start from, and its test; see docs/extend.md.

    Example: ``adagrpo new selection SecondHardest``
    """
    import builtins
    import re
    from importlib.util import find_spec
    from keyword import iskeyword

    from harness.config.plugins import BUILT_IN
    from harness.foundation.files import write_atomically

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", name):
        raise ConfigError(f"adagrpo new: {name!r} is no name of an object: use letters, digits and '_', at most 40")
    if iskeyword(name) or hasattr(builtins, name) or name in BUILT_IN:
        raise ConfigError(f"adagrpo new: {name} is a name of Python or of the project's own; take another one")
    examples = Path(__file__).with_name("examples")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    paths = {f"{kind}.py": folder / f"{module}.py", f"{kind}_test.py": folder / f"test_{module}.py"}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: is there already; take another name, or another --folder")
    if find_spec(module) is not None:
        raise ConfigError(f"adagrpo new: {module}.py would hide Python's module {module}; take another name")
    for example, path in paths.items():
        text = (examples / f"{example}.txt").read_text(encoding="utf-8")
        write_atomically(path, text.replace("Example", name).replace("example.py", f"{module}.py"))
        say(f"written: {path}")
    first = (examples / f"{kind}.py.txt").read_text(encoding="utf-8").partition('"""')[2].partition('"""')[0]
    say(first.replace("Example", name).replace("example.py", str(paths[f"{kind}.py"])))
    return 0


@command
def convert_config(
    file: Annotated[Path, "launch script (.sh) of GRPO-Series or DanceGRPO, or config/*.py of flow_grpo or FlowCPS"],
    *,
    family: Annotated[str | None, "GRPO-Series, flow_grpo, DanceGRPO or FlowCPS (default: taken from the file)"] = None,
    function: Annotated[str | None, "name of the function that sets the configuration, in a Python file"] = None,
) -> int:
    """Convert another trainer's configuration, and list what has no setting here; nothing of it is executed.

    Example: ``adagrpo convert-config scripts/train_adagrpo.sh``
    """
    from harness.config import strict_yaml
    from harness.config.dictionary import convert

    settings, left = convert(file, family, function)
    print(f"# From {file}; docs/dictionary.md. Not converted:")
    print("".join(f"#   {name}: {why}\n" for name, why in left.items()) or "#   nothing is missing\n", end="")
    print(strict_yaml.dump(settings), end="")
    return 0
