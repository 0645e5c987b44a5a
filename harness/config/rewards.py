"""Where reward models are and how they run."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Positive, Seconds, Section


class RewardConfig(Section):
    """Where a reward's model is and how it runs. Which keys a reward has depends on the reward and its backend."""

    plugin: str | None = None
    """path/to/file.py:Object or module:Object, for a reward that is none of the project's: docs/extend.md."""
    backend: Literal["native", "package", "url"] | None = None
    """In this process, by the published package in an environment of its own, or by a server; None is the usual one."""
    path: str | None = None
    """Checkpoint: a file or folder, found as docs/config.md says of paths, or a hub id as owner/name or
    owner/name/file, which must have been downloaded. None is the published one."""
    base: str | None = None
    """Folder or hub id with the architecture and tokenizer of a checkpoint that holds weights alone."""
    precision: Literal["fp32", "bf16"] | None = None
    """The network's; None is bf16 for hpsv3 and fp32 for all others. Of packages, hpsv3 alone can be told. The
    recognisers ocr and ocr-v4 need OpenVINO for bf16: ``pip install 'adagrpo[fast]'``."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Of the reward's own network. Auto: a GPU if there is one."""
    batch_size: Count = 8
    """Images at a time. Does not change scores beyond rounding."""
    offload: bool = False
    """Keep the model in main memory, and on its GPU only while it scores: for a GPU that cannot hold it beside the
    policy. Without a GPU it changes nothing."""
    python: str | None = None
    """Interpreter of the environment a package runs in, found as docs/config.md says of paths; None is the one that
    ``make reward-env`` made."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Address of ``adagrpo serve-reward``, or, for UnifiedReward, of an OpenAI-compatible server, without /v1."""
    model: str | None = None
    """Name under which UnifiedReward's server knows the model."""
    question: str | None = None
    """Text file with UnifiedReward's question, {prompt} standing for the prompt; None is the project's own."""
    timeout_seconds: Seconds = 600.0
    """Longest wait for a model to load or for a batch of scores."""
    offset: float = 0.0
    scale: Positive = 1.0
    """A weighted sum of rewards adds up weight * (score - offset) / scale."""

    @property
    def changed(self) -> set[str]:
        """Keys whose values are not the defaults."""
        return {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}
