"""A measurement's worker: one chunk after another until all are there, beside other workers.

``python -m harness.experiments.gradients.worker NAME`` is what the command starts.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from harness.config import ConfigError
from harness.errors import HarnessError
from harness.experiments.gradients.chunks import Chunk, compute, is_ready, plan
from harness.experiments.gradients.definition import Mechanism, load_mechanism
from harness.experiments.gradients.sampling import Sampler
from harness.experiments.jobs.streams import end_with_input
from harness.experiments.sweep.supervise import INTERRUPTED_CODE
from harness.files import lock
from harness.output import never_failing
from harness.prompts.lists import read_prompts
from harness.rewards import build_weighted
from harness.trained.loading import device_of

_POLL_SECONDS = 1.0

Say = Callable[[str], None]


def work(mechanism: Mechanism, say: Say, poll_seconds: float = _POLL_SECONDS) -> None:
    """Compute chunks until all of a measurement are there.

    Several processes may do so at once: each chunk is claimed by a lock that its process holds, and which ends with it.

    Args:
        mechanism: the measurement.
        say: receives lines of progress.
        poll_seconds: how often to look for the chunks of others that the rest needs.

    Raises:
        TrainingError: a picture is not finite.
        RewardError: the reward could not score.
        ConfigError: a checkpoint does not fit, or a prompt cannot be drawn.
    """
    torch.set_num_threads(mechanism.config.runtime.threads)
    chunks = plan(mechanism)
    sampler: Sampler | None = None
    at = None
    while left := [chunk for chunk in chunks if not chunk.is_done]:
        with _claimed(left, chunks) as chunk:
            if chunk is None:
                time.sleep(poll_seconds)
                continue
            if sampler is None or at != chunk.checkpoint:
                sampler, at = make_sampler(mechanism, chunk), chunk.checkpoint
            compute(chunk, chunks, sampler)
            say(f"{chunk.checkpoint.label}: {chunk.path.stem}")


def make_sampler(mechanism: Mechanism, chunk: Chunk) -> Sampler:
    """What draws at a chunk's checkpoint."""
    config = mechanism.config
    policy = chunk.checkpoint.load(config, device_of(config.runtime.device))
    prompts = read_prompts(config.prompts.train).prompts
    policy.check_prompts(prompts)
    reward = build_weighted(config.reward, config.runtime.threads, config.rewards)
    return Sampler(config, policy, reward, prompts)


@contextmanager
def _claimed(left: Sequence[Chunk], chunks: Sequence[Chunk]) -> Iterator[Chunk | None]:
    """The first chunk that is ready and no other process is at work on, held within; None if there is none."""
    for chunk in left:
        if not is_ready(chunk, chunks):
            continue
        chunk.path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(chunk.path.with_suffix(".lock"))
        if held is None:
            continue
        with held:
            # It may have been finished between the look and the lock.
            if not chunk.is_done:
                yield chunk
                return
    yield None


def mechanism_of(arguments: Sequence[str] | None) -> Mechanism:
    """The measurement that a worker's arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.experiments.gradients.worker", description="Measure gradients."
    )
    parser.add_argument("name", help="file in experiments/mechanism/, or a path")
    parser.add_argument("--checkpoints", nargs="+", required=True)
    parser.add_argument("--overrides", nargs="*", default=[])
    options = parser.parse_args(arguments)
    return load_mechanism(options.name, options.checkpoints, options.overrides)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 2 for a ConfigError, whose message is the last line of standard error."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_input()
    try:
        work(mechanism_of(arguments), lambda line: print(line, flush=True))
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    return 0


if __name__ == "__main__":
    with never_failing():
        sys.exit(main())
