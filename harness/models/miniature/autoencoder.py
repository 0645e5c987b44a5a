"""Linear patch autoencoder, 8 x 8 x 3 pixels <-> 24 latent channels; a drop-in replacement for FLUX's AutoencoderKL."""

from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

PATCH = 8


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Half-whitened principal components of picture patches: z = U^T (patch - mean) / s^(1/2).

    Half-whitening keeps leading components larger, so that a diffusion model learns them first, while the small ones
    stay well above the noise floor. ``scaling_factor`` scales latents to unit variance overall.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 24,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        # FluxPipeline derives the spatial factor 2 ** (len - 1) = 8 from this field.
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, latent_channels, PATCH, stride=PATCH)
        self.decoder = nn.ConvTranspose2d(latent_channels, 3, PATCH, stride=PATCH, bias=False)
        self.patch_mean = nn.Parameter(torch.zeros(3, PATCH, PATCH))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[IdentityDistribution]:
        """Encode pictures ``[B, 3, H, W]`` in [-1, 1] to a point distribution at latents ``[B, C, H/8, W/8]``."""
        distribution = IdentityDistribution(self.encoder(x))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode latents ``[B, C, h, w]`` to pictures ``[B, 3, 8h, 8w]``, about in [-1, 1]."""
        sample = self.decoder(z) + self.patch_mean.repeat(1, z.shape[-2], z.shape[-1])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Tensor, latent_channels: int = 24) -> "PatchAutoencoder":
        """Fit the principal components of pictures ``[N, 3, H, W]`` in [-1, 1]."""
        patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # N, 3, h, w, 8, 8
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH).double()
        mean = patches.mean(0)
        variance, basis = torch.linalg.eigh(torch.cov((patches - mean).T))
        basis = basis[:, -latent_channels:].flip(1)  # 192, C; leading component first
        # eigh does not determine signs; fix them, so that every machine fits the same autoencoder.
        basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        root = variance[-latent_channels:].flip(0).clamp_min(1e-12) ** 0.25  # s^(1/2), s a standard deviation
        latents = (patches - mean) @ basis / root
        model = cls(latent_channels=latent_channels, scaling_factor=float(1 / latents.std()))
        encoder = (basis / root).T
        model.encoder.weight.copy_(encoder.reshape(-1, 3, PATCH, PATCH))
        cast(Tensor, model.encoder.bias).copy_(-encoder @ mean)
        model.decoder.weight.copy_((basis * root).T.reshape(-1, 3, PATCH, PATCH))
        model.patch_mean.copy_(mean.reshape(3, PATCH, PATCH))
        return model


# The module that saved pipelines name for the class: the package, which is light to import and loads it on demand.
PatchAutoencoder.__module__ = "harness.models.miniature"
