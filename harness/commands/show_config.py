"""``adagrpo show-config``: every value of a run, and where it was written."""

import argparse

from harness.commands import Commands


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    from harness.commands.train import add_run_options

    parser = commands.add_parser("show-config", help="every value of a run, and the file and line or override it is of")
    add_run_options(parser, "as in selection=curriculum fusion.weight=2")
    parser.set_defaults(command=show_config)


def show_config(options: argparse.Namespace) -> int:
    """Print a line for each value; settings without effect say why."""
    import json

    from harness.commands.train import PROFILE, run_to_resume
    from harness.config import compose, inert_settings, leaves
    from harness.foundation.files import read_text

    run = run_to_resume(options)
    if run is None:
        config = compose(options.profile or PROFILE, options.method, overrides=options.overrides)
        origins = config.origins
    else:
        config, path = run.config, run.folder / "origins.json"
        origins = json.loads(read_text(path)) if path.is_file() else {}
    inert = inert_settings(config)
    rows = []
    for key, value in leaves(config.model_dump(mode="json")).items():
        without = [f" (no effect: {why})" for name, why in inert.items() if f"{key}.".startswith(f"{name}.")]
        unknown = "not recorded" if run is not None and not origins else "default"
        rows.append((f"{key}={json.dumps(value, ensure_ascii=False)}", origins.get(key, unknown) + "".join(without)))
    width = min(60, max(len(setting) for setting, _ in rows))
    print("\n".join(f"{setting:{width}}  {origin}" for setting, origin in rows))
    return 0
