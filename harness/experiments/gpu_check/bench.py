"""Objects that the checks need: pipelines of real width and reduced depth, or of tiny widths, with random weights."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2VLConfig,
    T5Config,
    T5EncoderModel,
)

from harness.config import RewardConfig, RunConfig, compose
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.published import FLUX_DEV, SD35_MEDIUM
from harness.models.pipelines.registry import build_policy
from harness.models.pipelines.twins import TWINS
from harness.prompts.lists import generator_for, read_prompts
from harness.rewards import build_weighted
from harness.rewards.files.twins import find_twin
from harness.rewards.native.hpsv3 import HpsV3, RewardModel
from harness.training.trainer import Trainer

GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """Result of a check: figures by name, and whether they are as expected; None if this device cannot tell."""

    figures: dict[str, Any]
    passed: bool | None


@dataclass
class Bench:
    """Device, sizes and folders of the checks; models are built when a check asks for them.

    Attributes:
        device: device on which everything runs.
        is_tiny: whether widths are tiny: the same code in seconds, whose figures say nothing about a real model.
        folder: scratch folder.
        noted: figures that the doctor reads.
    """

    device: torch.device
    is_tiny: bool
    folder: Path
    noted: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU's memory and kernels can be measured."""
        return self.device.type == "cuda"

    @property
    def batch(self) -> int:
        """Number of samples in a forward pass."""
        return 4 if self.is_tiny else 12

    def pipeline(self, name: str) -> Path:
        """Folder of a pipeline, ``flux`` or ``sd3``, with weights rounded to bf16 as those on the hub."""
        folder = self.folder / name
        if not folder.exists():
            torch.manual_seed(0)
            pipe = TWINS[name]()
            if not self.is_tiny:
                pipe.register_modules(**_of_real_width(name, pipe))
            for parameter in pipe.transformer.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.02)
            pipe.transformer.to(torch.bfloat16)
            pipe.save_pretrained(folder)
        return folder

    def config(self, *overrides: str, method: str = "adagrpo_flux", pipeline: str = "flux") -> RunConfig:
        """Configuration of a method's run on a pipeline of this bench, with rewards of tiny width."""
        side, text = (64, 64) if self.is_tiny else (512, 256)
        settings = {
            "model": {
                "path": str(self.pipeline(pipeline)),
                "height": side,
                "width": side,
                "num_steps": 8,
                "max_sequence_length": text,
                "precision": "bf16",
                "max_batch": self.batch,
                "execution": {"text_encoders": "keep"},
            },
            "rollout": {"prompts_per_iteration": 1},
            "evaluation": {"test": False, "base_test": False, "gallery": 0},
            "runtime": {"device": self.device.type},
        }
        return compose("paper-dry", method, settings, ["reward={hpsv2: 1}", *overrides])

    def policy(self, *overrides: str) -> Policy:
        """Policy that trains adapters of rank 64 (4 if tiny), unless overrides say otherwise."""
        rank = 4 if self.is_tiny else 64
        adapters = f"optimizer={{tuning: lora, lora: {{rank: {rank}, alpha: {2 * rank}}}}}"
        config = self.config(adapters, *overrides)
        return build_policy(config.model, config.optimizer, self.device, config.seed)

    def inputs(self, policy: Policy, count: int | None = None) -> tuple[Tensor, float, PromptEmbedding]:
        """Latents, sigma and text of some samples, the same on every device."""
        count = count or self.batch
        prompts = [f"picture number {i} of a red fox" for i in range(count)]
        return policy.noise(generator_for(1), count), 0.8, policy.encode(prompts)

    def trainer(self, config: RunConfig) -> Trainer:
        """Trainer of a run before its first iteration."""
        policy = build_policy(config.model, config.optimizer, self.device, config.seed)
        reward = build_weighted(config.reward, 1, config.rewards)
        prompts = read_prompts(config.prompts.train).prompts
        return Trainer(config, policy, reward, prompts, Accelerator(cpu=not self.on_gpu))

    def seconds(self, work: Callable[[], object]) -> float:
        """Mean seconds of a piece of work, over three executions after one that is not counted."""
        work()
        began = self._now()
        for _ in range(3):
            work()
        return (self._now() - began) / 3

    def peak(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Result of a piece of work, and peak GPU memory in GiB beyond what was allocated before; 0 on a CPU."""
        if not self.on_gpu:
            return work(), 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        return result, (torch.cuda.max_memory_allocated() - before) / GIB

    def _now(self) -> float:
        """Time in seconds, after the device has done all its work."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def free(self) -> None:
        """Free what the checks so far left behind."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        if self.on_gpu:
            torch.cuda.empty_cache()


class RandomHpsV3(HpsV3):
    """HPS-v3 of any size with random weights, and with its twin's tokenizer.

    Args:
        size: size of the network.
        drawn_on: device whose generator draws the weights; equal weights need the same kind of device.
        settings: settings of the reward.
    """

    def __init__(self, size: Qwen2VLConfig, drawn_on: str, settings: RewardConfig) -> None:
        super().__init__("hpsv3", settings)
        self._size, self._drawn_on = size, drawn_on

    @cached_property
    def _network(self) -> RewardModel:
        torch.manual_seed(0)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            with torch.device(self._drawn_on):
                model = RewardModel(self._size)
        finally:
            torch.set_default_dtype(usual)
        for module in model.modules():
            if isinstance(module, nn.Linear):  # large enough for scores to differ by far more than rounding
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        model.rm_head.float()
        return model.eval().requires_grad_(False).to(self._home)


def qwen2_vl(is_tiny: bool = False, layers: int | None = None) -> Qwen2VLConfig:
    """Qwen2-VL-7B with HPS-v3's vocabulary and ``layers`` blocks for pictures and for text (None: all); or its twin."""
    config: Qwen2VLConfig = Qwen2VLConfig.from_pretrained(find_twin("hpsv3", "base", "hpsv3"))
    if is_tiny:
        return config
    text, seen = config.text_config.to_dict(), config.vision_config.to_dict()
    text |= {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": layers or 28, "vocab_size": 151_658}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "layer_types": None}
    text["rope_parameters"] |= {"mrope_section": [16, 24, 24]}
    seen |= {"depth": layers or 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}
    return Qwen2VLConfig(**config.to_dict() | {"text_config": text, "vision_config": seen})


def distance(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def _of_real_width(name: str, pipe: Any) -> dict[str, Any]:
    """Networks of the published widths, with few transformer blocks and one layer in each text encoder."""
    t5 = pipe.text_encoder_2 if name == "flux" else pipe.text_encoder_3
    encoder = T5EncoderModel(T5Config(**t5.config.to_dict() | {"d_model": 4096, "d_ff": 1024, "num_layers": 1}))
    vae = {**dict(pipe.vae.config), "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    parts: dict[str, Any] = {"vae": AutoencoderKL.from_config(vae)}
    published = FLUX_DEV if name == "flux" else SD35_MEDIUM
    assert published.transformer is not None
    settings = dict(published.transformer[1])
    if name == "flux":
        network = FluxTransformer2DModel(**{**settings, "num_layers": 2, "num_single_layers": 4})
        clip = CLIPTextModel(_clip(pipe.text_encoder.config, 768, 12))
        return parts | {"transformer": network, "text_encoder": clip, "text_encoder_2": encoder}
    network = SD3Transformer2DModel(**{**settings, "num_layers": 4, "dual_attention_layers": (0, 1)})
    large = CLIPTextModelWithProjection(_clip(pipe.text_encoder_2.config, 1280, 20))
    small = CLIPTextModelWithProjection(_clip(pipe.text_encoder.config, 768, 12))
    return parts | {"transformer": network, "text_encoder": small, "text_encoder_2": large, "text_encoder_3": encoder}


def _clip(tiny: CLIPTextConfig, width: int, heads: int) -> CLIPTextConfig:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return CLIPTextConfig(**tiny.to_dict() | sizes | {"num_attention_heads": heads, "num_hidden_layers": 1})
