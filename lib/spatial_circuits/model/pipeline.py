"""Pipeline: everything that turns a prompt into a picture."""
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel, SchedulerMixin
from torch import Tensor

from ..text.batch import Encoder
from .noise import Noise
from .precision import resolve_precision
from .sampler import sample_latents
from .transformer import bf16_copy
from .vae import VAE


@dataclass
class Model:
    """Everything that turns a prompt into a picture, and how it was trained."""
    name: str
    transformer: PixArtTransformer2DModel
    scheduler: SchedulerMixin
    encoder: Encoder
    vae: VAE
    noise: Noise
    text: dict       # name and options of the encoder
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where it samples."""
        return next(self.transformer.parameters()).device

    def latents(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
        """Latents [B, 4, 16, 16] on the model's device; options as of `sampler.sample_latents`."""
        return sample_latents(self.transformer, self.scheduler, self.encoder, prompts, seeds,
                              **options)

    def images(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
        """Pictures, uint8 [B, 3, 128, 128], on the CPU."""
        return self.vae.decode(self.latents(prompts, seeds, **options)).cpu()

    def fast(self) -> "Model":
        """This model in bf16 where its device multiplies that fast (more than twice as many
        pictures), else itself."""
        if resolve_precision("auto", self.device) != "bf16":
            return self
        vae = VAE(copy.deepcopy(self.vae.model).bfloat16(), self.vae.mean, self.vae.std)
        return replace(self, transformer=bf16_copy(self.transformer), vae=vae)

    def to(self, device: str | torch.device) -> "Model":
        """This model, moved in place: transformer and VAE. Encoders work on the CPU, and the
        sampler moves what they give."""
        self.transformer.to(device)
        self.vae = self.vae.to(device)
        return self
