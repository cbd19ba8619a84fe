"""VAE: a small AutoencoderKL (diffusers) between 128-px pictures and 4 x 16 x 16 latents, trained on rendered scenes.

Latents are shifted and scaled per channel to mean 0 and deviation 1 over the training scenes; both are measured after
training and stored in the VAE's own config (`latents_mean`, `latents_std`), so any diffusers VAE can be used instead.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from .render import render
from .scenes import SIZE, sample

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=SIZE, block_out_channels=(8, 16, 32, 64),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
    norm_num_groups=4, mid_block_add_attention=False, scaling_factor=1.0)


@dataclass
class VAE:
    """A diffusers AutoencoderKL with its latent statistics: pictures in uint8, latents with unit deviation."""
    model: AutoencoderKL
    mean: Tensor  # [1, 4, 1, 1]
    std: Tensor   # [1, 4, 1, 1]

    @classmethod
    def load(cls, name: str | Path) -> "VAE":
        """A local folder or hub name, e.g. "stabilityai/sd-vae-ft-ema" (needs a hub). Raises OSError if not found."""
        model = AutoencoderKL.from_pretrained(name, use_safetensors=True, torch_dtype=torch.float32).eval().requires_grad_(False)
        model.to(memory_format=torch.channels_last)  # twice as fast on CPUs
        config = model.config
        if config.latents_mean is None:
            shift = config.shift_factor or 0.0
            return cls(model, torch.full((1, 1, 1, 1), shift), torch.full((1, 1, 1, 1), 1 / config.scaling_factor))
        return cls(model, *(torch.tensor(s).view(1, -1, 1, 1) for s in (config.latents_mean, config.latents_std)))

    def to(self, device: str | torch.device) -> "VAE":
        """Move in place, as modules do: whoever shares this VAE finds network and statistics on one device."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, batch: int = 64) -> Tensor:
        """uint8 [B, 3, 128, 128] -> latents float32 [B, 4, 16, 16], the posterior's mean."""
        parts = [self.model.encode(to_unit(x, self.mean.device)).latent_dist.mode() for x in images.split(batch)]
        return (torch.cat(parts).float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 16) -> Tensor:
        """latents [B, 4, 16, 16] -> uint8 [B, 3, 128, 128]."""
        dtype = self.model.dtype
        parts = [self.model.decode((z * self.std + self.mean).to(dtype)).sample.float() for z in latents.split(batch)]
        return torch.cat([((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for x in parts])


def to_unit(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 0..255 -> float -1..1."""
    return images.to(device).float() / 127.5 - 1


def train_vae(steps: int = 1600, batch: int = 16, lr: float = 3e-3, kl: float = 1e-4, seed: int = 0,
              device: str = "cpu", dtype: torch.dtype = torch.float32, log: list | None = None) -> AutoencoderKL:
    """Train CONFIG from scratch on the clean scene stream: L1 + MSE + kl * KL, AdamW, cosine to zero.

    Returns the model with `latents_mean` and `latents_std` measured on 2,048 fresh scenes in its config.
    """
    torch.manual_seed(seed)
    model = AutoencoderKL(**CONFIG).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 50) * (1 + torch.tensor(i / steps * torch.pi).cos().item()) / 2)
    with tqdm(range(steps), desc="VAE", unit="step") as bar:
        for i in bar:
            x = to_unit(render(sample(torch.arange(i * batch, (i + 1) * batch, device=device), seed + 1)), device)
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                posterior = model.encode(x).latent_dist
                out = model.decode(posterior.sample()).sample
            error = out.float() - x
            loss = error.abs().mean() + error.square().mean() + kl * posterior.kl().mean() / (4 * 16 * 16)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(); optimizer.zero_grad(); schedule.step()
            if i % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", mse=f"{error.square().mean().item():.5f}")
                if log is not None:
                    log.append({"step": i, "loss": loss.item(), "mse": error.square().mean().item()})
    return measure(model.eval())


@torch.no_grad()
def measure(model: AutoencoderKL, count: int = 2048) -> AutoencoderKL:
    """Store the latents' mean and deviation per channel, over `count` scenes of a stream of their own, in the config."""
    device = next(model.parameters()).device
    batches = torch.arange(count, device=device).split(64)
    z = torch.cat([model.encode(to_unit(render(sample(b, seed=10_001)), device)).latent_dist.mode() for b in batches])
    model.register_to_config(latents_mean=z.mean((0, 2, 3)).tolist(), latents_std=z.std((0, 2, 3)).tolist())
    return model
