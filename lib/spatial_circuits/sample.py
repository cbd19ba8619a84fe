"""Sample: prompts and seeds become latents with DPM-Solver++ 2M and classifier-free guidance (CFG).

A batch holds any mix of prompts and seeds; each image starts from the noise of its own seed, so that it depends on its
prompt and seed alone.
"""
from collections.abc import Callable, Sequence

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import Tensor
from tqdm import tqdm

from .dit import predict
from .text import Encoder

STEPS, GUIDANCE = 14, 4.5  # the paper's


def initial_noise(seeds: Sequence[int], channels: int = 4, size: int = 16) -> Tensor:
    """[B, 4, 16, 16]: the noise of each seed, drawn on the CPU so that it is the same on every device."""
    return torch.stack([torch.randn(channels, size, size, generator=torch.Generator().manual_seed(int(s)))
                        for s in seeds])


@torch.no_grad()
def sample(model: PixArtTransformer2DModel, scheduler: DPMSolverMultistepScheduler, encoder: Encoder,
           prompts: Sequence[str], seeds: Sequence[int], steps: int = STEPS, guidance: float = GUIDANCE,
           batch: int = 128, on_step: Callable[[int, Tensor], None] | None = None,
           on_guess: Callable[[int, Tensor], None] | None = None, progress: bool = False) -> Tensor:
    """Latents [B, 4, 16, 16] for B prompts and B seeds. `on_step(step, latents)` sees each batch after each step, and
    `on_guess(step, latents)` the noise-free latents that the step predicts.

    CFG runs the two halves in one forward, unconditional first, both with the prompt's length; the null is
    `encoder.encode([""])`, as in training. Raises ValueError for unequal lengths, steps < 1, or an unencodable prompt.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; it must be an integer of at least 1")
    if not len(prompts):
        return torch.empty(0, 4, 16, 16)
    unique = list(dict.fromkeys(["", *prompts]))
    encoded, (device, dtype) = encoder.encode(unique), next((p.device, p.dtype) for p in model.parameters())
    text, mask = encoded.embeddings.to(device, dtype), encoded.mask.to(device)  # [U, T, D], [U, T]; row 0 is the null
    rows = torch.tensor([unique.index(p) for p in prompts], device=device)
    chunks = torch.arange(len(prompts)).split(batch)
    with tqdm(total=len(prompts), desc="sampling", unit="image", disable=not progress) as bar:
        out = []
        for chunk in chunks:
            both = torch.cat([torch.zeros_like(rows[chunk]), rows[chunk]])      # [2 b]: unconditional, conditional
            noise = initial_noise([seeds[i] for i in chunk]).to(device)
            out.append(_denoise(model, scheduler, noise, text[both], mask[both], steps, guidance, on_step, on_guess))
            bar.update(len(chunk))
    return torch.cat(out)


def _denoise(model, scheduler, latents: Tensor, text: Tensor, mask: Tensor, steps: int, guidance: float,
             on_step, on_guess) -> Tensor:
    """One batch [b, 4, 16, 16] of noise to latents; text [2 b, T, D] holds the unconditional half first."""
    scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)       # a solver keeps state: take a fresh one
    scheduler.set_timesteps(steps, device=latents.device)
    for i, t in enumerate(scheduler.timesteps):
        timestep = t.expand(2 * len(latents))
        both = latents.repeat(2, 1, 1, 1).to(text.dtype)
        null, conditional = predict(model, both, timestep, text, mask).float().chunk(2)
        latents = scheduler.step(null + guidance * (conditional - null), t, latents).prev_sample
        if on_step:
            on_step(i, latents)
        if on_guess:
            on_guess(i, scheduler.model_outputs[-1])                            # DPM-Solver++ keeps its predictions of x_0
    return latents
