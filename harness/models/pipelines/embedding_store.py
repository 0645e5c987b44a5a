"""Cache of the text conditioning of prompts: in memory within a budget, and on disk if the encoders are freed."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from harness.config import ConfigError, ModelConfig
from harness.foundation.files import write_atomically
from harness.foundation.places import cache_folder
from harness.foundation.plugins import find
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.files import text_fingerprint

MEMORY_BYTES = 2**30
"""Default memory budget: room for 500 prompts of FLUX.1-dev, whose embeddings take 2 MB each."""

Compute = Callable[[list[str]], PromptEmbedding]


def embeddings_folder(pipeline: Path, model: ModelConfig, policy: str) -> Path:
    """Cache folder named by all that embeddings depend on besides the prompt.

    Args:
        pipeline: folder of the pipeline, whose text encoders and tokenizers count.
        model: settings of the text encoders; a plug-in's file counts, since it may encode text in another way.
        policy: name of the policy's class; templates and choice of layers are its code and the two libraries'.
    """
    plugin = () if model.adapter is None else (find(model.adapter).sha256[:16],)
    code = (policy, version("diffusers"), version("transformers"), *plugin)
    key = (text_fingerprint(pipeline)[:16], str(model.max_sequence_length), model.precision, *code)
    return cache_folder("embeddings") / "-".join(key)


class EmbeddingStore:
    """Cache of embeddings by prompt; the least recently used are dropped from memory first.

    Args:
        device: device of the returned embeddings.
        folder: folder with one file per prompt; None stores nothing on disk.
        memory_bytes: memory budget after each call; at least one prompt is kept.
    """

    def __init__(self, device: torch.device, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._device, self._folder, self._budget = device, folder, memory_bytes
        self._memory: OrderedDict[str, PromptEmbedding] = OrderedDict()
        self._bytes = 0

    def get(self, prompts: Sequence[str], compute: Compute) -> PromptEmbedding:
        """Get the embeddings of n prompts from memory or disk; the rest is computed in one call.

        Raises:
            ConfigError: a file on disk is damaged.
        """
        found: dict[str, PromptEmbedding] = {}
        new = []
        for prompt in dict.fromkeys(prompts):
            if prompt in self._memory:
                found[prompt] = self._memory[prompt]
            elif self.has_on_disk(prompt):
                found[prompt] = self._read(prompt)
            else:
                new.append(prompt)
        if new:
            computed = compute(new)
            # Copies, because a view would keep the whole batch in memory as long as any of its prompts is cached.
            states, pooled = computed.states.split(1), computed.pooled.split(1)
            found |= {p: PromptEmbedding(s.clone(), v.clone()) for p, s, v in zip(new, states, pooled, strict=True)}
        for prompt, embedding in found.items():
            self._bytes += 0 if prompt in self._memory else embedding.num_bytes
            self._memory[prompt] = embedding
            self._memory.move_to_end(prompt)
        while self._bytes > self._budget and len(self._memory) > 1:
            self._bytes -= self._memory.popitem(last=False)[1].num_bytes
        return PromptEmbedding.cat([found[p] for p in prompts])

    def has_on_disk(self, prompt: str) -> bool:
        """Whether a prompt's embedding is on disk."""
        return self._folder is not None and self._file(prompt).is_file()

    def write(self, prompts: Sequence[str], embedding: PromptEmbedding) -> None:
        """Write the embeddings of n prompts to disk."""
        for row, prompt in enumerate(prompts):
            tensors = {"states": embedding.states[row : row + 1], "pooled": embedding.pooled[row : row + 1]}
            tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            write_atomically(self._file(prompt), save(tensors))

    def _read(self, prompt: str) -> PromptEmbedding:
        file = self._file(prompt)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file}: a cached embedding is damaged ({error}); delete it") from None
        return PromptEmbedding(tensors["states"].to(self._device), tensors["pooled"].to(self._device))

    def _file(self, prompt: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"
