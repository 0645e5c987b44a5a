"""``adagrpo serve-reward``: hold a reward's model for other processes."""

import argparse

from harness.commands import Commands
from harness.foundation.errors import ConfigError, HarnessError


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("serve-reward", help="hold a reward's model for runs that use the backend url")
    parser.add_argument("name", help="reward, such as hpsv3")
    parser.add_argument("--port", type=int, default=8500, help="default: 8500; 0 takes a free one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone; there is no password)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model (default: 1)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as path=HPSv3.safetensors device=cuda:1")
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    import torch
    from pydantic import ValidationError

    from harness.config import RewardConfig, one_line, parse_overrides
    from harness.rewards import build_reward
    from harness.rewards.remote.client import is_loopback
    from harness.rewards.remote.server import serving

    torch.set_num_threads(options.threads)
    try:
        settings = RewardConfig.model_validate(parse_overrides(options.settings))
        reward = build_reward(options.name, options.threads, settings)
        server = serving(reward, options.host, options.port)
    except ValidationError as error:
        raise ConfigError(f"serve-reward: {one_line(error, RewardConfig)}") from None
    except (ValueError, HarnessError, OverflowError) as error:
        raise ConfigError(f"serve-reward: {error}") from None
    except OSError as error:
        raise ConfigError(f"serve-reward: cannot listen at {options.host}:{options.port}: {error.strerror}") from None
    address = f"http://{options.host}:{server.server_port}"
    print(f"serving {options.name} ({server.about['fingerprint'][:12]}) at {address}; for runs: ", end="")
    print(f"rewards.{options.name}.backend=url rewards.{options.name}.url={address}; ", end="")
    alone = is_loopback(options.host)
    print("only this machine reaches it" if alone else "all who reach this machine do, without a password", flush=True)
    with server:
        try:
            server.serve_forever()
        finally:
            reward.close()
    return 0
