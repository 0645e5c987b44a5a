"""Settings of reward models: where they are and how they are executed."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Positive, Seconds, Section


class RewardConfig(Section):
    """Location and execution of a reward's model. Which keys a reward has depends on the reward and its backend."""

    plugin: str | None = None
    """Reference path/to/file.py:Object or module:Object of a reward that is not built in: docs/extend.md."""
    backend: Literal["native", "package", "url"] | None = None
    """Computed in this process, by the published package in its own environment, or by a server; None: the default."""
    path: str | None = None
    """Checkpoint: a file or folder, searched as docs/config.md describes for paths, or a hub id as owner/name or
    owner/name/file, which must have been downloaded. None is the published one."""
    base: str | None = None
    """Folder or hub id with the architecture and tokenizer of a checkpoint that contains only weights."""
    precision: Literal["fp32", "bf16"] | None = None
    """Precision of the network; None is bf16 for hpsv3 and fp32 for all others. Among packages, only hpsv3 has this
    choice. The recognisers ocr and ocr-v4 need OpenVINO for bf16: ``pip install 'adagrpo[fast]'``."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Device of the reward's own network; auto is a GPU if there is one."""
    batch_size: Count = 8
    """Number of images per batch. Changes scores only by rounding."""
    offload: bool = False
    """Keep the model in main memory, and on its GPU only while it scores: for a GPU that cannot hold it beside the
    policy. Has no effect without a GPU."""
    python: str | None = None
    """Python interpreter of the package's environment, searched as docs/config.md describes for paths; None is the one
    that ``make reward-env`` made."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Address of ``adagrpo serve-reward``, or, for UnifiedReward, of an OpenAI-compatible server, without /v1."""
    model: str | None = None
    """Name of the model on UnifiedReward's server."""
    question: str | None = None
    """Text file with UnifiedReward's question, in which {prompt} stands for the prompt; None is the built-in one."""
    timeout_seconds: Seconds = 600.0
    """Longest wait for a model to load or for a batch of scores."""
    offset: float = 0.0
    scale: Positive = 1.0
    """Normalisation: a weighted sum of rewards adds up weight * (score - offset) / scale."""

    @property
    def changed(self) -> set[str]:
        """Keys whose values differ from the defaults."""
        return set(self.model_dump(exclude_defaults=True))
