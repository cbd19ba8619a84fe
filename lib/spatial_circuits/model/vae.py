"""VAE: a small AutoencoderKL between 128-px pictures and 4 x 16 x 16 latents, trained on scenes.

Latents are shifted and scaled per channel to mean 0 and deviation 1 over the training scenes; both
are measured after training and stored in the VAE's own config (`latents_mean`, `latents_std`), so
that any VAE of diffusers can be used instead.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..text.hub import read_pretrained


@dataclass
class VAE:
    """A diffusers AutoencoderKL with its statistics: uint8 pictures, standardised latents."""
    model: AutoencoderKL
    mean: Tensor  # [1, 4, 1, 1]
    std: Tensor   # [1, 4, 1, 1]

    @classmethod
    def load(cls, name: str | Path) -> "VAE":
        """By local folder or hub name, e.g. "stabilityai/sd-vae-ft-ema". OSError if not found."""
        model = read_pretrained(AutoencoderKL, name, torch_dtype=torch.float32)
        model.eval().requires_grad_(False)
        model.to(memory_format=torch.channels_last)  # twice as fast on CPUs
        config = model.config
        if config.latents_mean is None:
            shift = config.shift_factor or 0.0
            return cls(model, torch.full((1, 1, 1, 1), shift),
                       torch.full((1, 1, 1, 1), 1 / config.scaling_factor))
        mean, std = (torch.tensor(s).view(1, -1, 1, 1)
                     for s in (config.latents_mean, config.latents_std))
        return cls(model, mean, std)

    def save(self, folder: Path) -> None:
        """Write it in its own precision, statistics in config.json: `load` gives the same VAE."""
        self.model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        channels = config["latent_channels"]
        for name, value in (("latents_mean", self.mean), ("latents_std", self.std)):
            config[name] = value.cpu().expand(1, channels, 1, 1).flatten().tolist()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def tensors(self) -> dict[str, Tensor]:
        """Weights and statistics, by which a saved model knows its VAE."""
        channels = self.model.config["latent_channels"]
        mean, std = (x.expand(1, channels, 1, 1) for x in (self.mean, self.std))
        return {**self.model.state_dict(), "latents_mean": mean, "latents_std": std}

    def to(self, device: str | torch.device) -> "VAE":
        """Move in place, as modules do: who shares this VAE finds all of it on one device."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, batch: int = 64) -> Tensor:
        """uint8 [B, 3, 128, 128] on any device -> latents float32 [B, 4, 16, 16] on the VAE's.

        The posterior's mean, standardised.
        """
        parts = []
        for x in images.split(batch):
            unit = to_unit(x, self.mean.device).to(self.model.dtype)
            parts.append(self.model.encode(unit).latent_dist.mode())
        return (torch.cat(parts).float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 16) -> Tensor:
        """latents [B, 4, 16, 16] on any device -> uint8 [B, 3, 128, 128] on the VAE's.

        Raises ValueError, naming the first, for latents whose picture is not finite.
        """
        parts: list[Tensor] = []
        for start in range(0, len(latents), batch):
            z = latents[start:start + batch].to(self.mean.device) * self.std + self.mean
            x = self.model.decode(z.to(self.model.dtype)).sample.float()
            finite = x.isfinite().flatten(1).all(1)
            if not finite.all():
                bad = start + int((~finite).nonzero()[0])
                raise ValueError(f"image {bad} of {len(latents)} is not finite: its latents hold "
                                 "NaN, infinity, or more than this precision can")
            parts.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        if not parts:
            return torch.empty(0, 3, 128, 128, dtype=torch.uint8, device=self.mean.device)
        return torch.cat(parts)


def to_unit(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 0..255 -> float -1..1."""
    return images.to(device).float() / 127.5 - 1
