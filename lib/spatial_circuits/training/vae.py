"""VAE training: from scratch on rendered scenes, in minutes."""
from math import cos, pi

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from ..data.render import render
from ..data.scenes import SIZE, sample_scenes
from ..model.vae import to_unit

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=SIZE,
    block_out_channels=(8, 16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
    mid_block_add_attention=False, scaling_factor=1.0)


def train_vae(steps: int = 1600, batch: int = 16, lr: float = 3e-3, kl: float = 1e-4, seed: int = 0,
              device: str = "cpu", dtype: torch.dtype = torch.float32,
              log: list | None = None) -> AutoencoderKL:
    """Train CONFIG from scratch on the clean stream: L1 + MSE + kl * KL, AdamW, cosine to zero.

    Returns the model with `latents_mean` and `latents_std`, measured on 2,048 fresh scenes, in its
    config. Raises ValueError at a loss that is not finite, naming the step.
    """
    torch.manual_seed(seed)
    model = AutoencoderKL(**CONFIG).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 50) * (1 + cos(i / steps * pi)) / 2)
    with tqdm(range(steps), desc="VAE", unit="step") as bar:
        for i in bar:
            rows = torch.arange(i * batch, (i + 1) * batch, device=device)
            x = to_unit(render(sample_scenes(rows, seed + 1)), device)
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                posterior = model.encode(x).latent_dist
                out = model.decode(posterior.sample()).sample
            error = out.float() - x
            mse, kls = error.square().mean(), posterior.kl().mean() / (4 * 16 * 16)
            loss = error.abs().mean() + mse + kl * kls
            if not loss.isfinite():
                raise ValueError(f"the VAE's loss is not finite at step {i + 1}; lower lr, {lr}")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if i % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", mse=f"{mse.item():.5f}")
                if log is not None:
                    log.append({"step": i, "loss": loss.item(), "mse": mse.item()})
    return measure(model.eval())


@torch.no_grad()
def measure(model: AutoencoderKL, count: int = 2048) -> AutoencoderKL:
    """Store the latents' mean and deviation per channel, over `count` scenes of a stream of their
    own, in the config."""
    device = next(model.parameters()).device
    batches = torch.arange(count, device=device).split(64)
    pictures = (to_unit(render(sample_scenes(b, seed=10_001)), device) for b in batches)
    z = torch.cat([model.encode(x).latent_dist.mode() for x in pictures])
    model.register_to_config(latents_mean=z.mean((0, 2, 3)).tolist(),
                             latents_std=z.std((0, 2, 3)).tolist())
    return model
