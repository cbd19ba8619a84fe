"""Sampler: prompts and seeds become latents with classifier-free guidance (CFG) and any solver of
diffusers, by default DPM-Solver++ 2M.

A batch holds any mix of prompts and seeds; each image starts from the noise of its own seed, so
that it depends on its prompt and seed alone.

Why not diffusers' PixArtAlphaPipeline: it takes guidance up to 1 for none (so that 0 is not the
null prompt), does guidance and solver in the model's precision, fails at a single step of this
solver, keeps one solver for all runs, and calls back after a step, where hooks have to be told
before. The loop below is its loop without these.
"""
import inspect
import operator
from collections.abc import Callable, Sequence
from math import isfinite

import torch
from diffusers import PixArtTransformer2DModel, SchedulerMixin
from torch import Tensor, nn
from tqdm import tqdm

from ..text.batch import Encoder
from .forward import BRANCHES, Forward, tell
from .transformer import predict

STEPS, GUIDANCE = 14, 4.5  # the paper's
Watcher = Callable[[int, Tensor], None]


def _seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed {seed!r} is no integer") from None
    if not -2**63 <= number < 2**64:
        raise ValueError(f"seed {number} is out of range; seeds run from -2**63 to 2**64 - 1")
    return number


def _noise(seeds: Sequence[int], channels: int, size: int) -> tuple[Tensor, list[torch.Generator]]:
    generators = [torch.Generator().manual_seed(_seed(seed)) for seed in seeds]
    noise = [torch.randn(channels, size, size, generator=g) for g in generators]
    return torch.stack(noise), generators


def initial_noise(seeds: Sequence[int], channels: int = 4, size: int = 16) -> Tensor:
    """[B, 4, 16, 16]: the noise of each seed, drawn on the CPU: the same on every device.

    Raises ValueError naming a seed that is no integer or out of range.
    """
    return _noise(seeds, channels, size)[0]


def ready_scheduler(scheduler: SchedulerMixin, steps: int,
                    device: torch.device | str = "cpu") -> SchedulerMixin:
    """A fresh solver of the same class and config (one holds state), its `timesteps` set."""
    longest = scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= longest:
        raise ValueError(f"steps is {steps!r}; it must be an integer of at least 1, "
                         f"at most {longest}")
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps, device=device)
    return fresh


@torch.no_grad()
def sample_latents(model: PixArtTransformer2DModel, scheduler: SchedulerMixin, encoder: Encoder,
                   prompts: Sequence[str], seeds: Sequence[int], steps: int = STEPS,
                   guidance: float | None = GUIDANCE, batch: int = 128,
                   on_step: Watcher | None = None, on_guess: Watcher | None = None,
                   progress: bool = False) -> Tensor:
    """Latents [B, 4, 16, 16] on the model's device for B prompts and B seeds.

    `on_step(step, latents)` sees each batch after each step, `on_guess(step, latents)` the
    noise-free latents that the step predicts; steps number the model's evaluations. CFG runs both
    branches in one forward, unconditional first; the null is `encoder.encode([""])`, as in
    training. `guidance` None runs the conditional branch alone, at half the cost. Raises
    ValueError for a wrong option, a prompt that cannot be encoded, or latents not finite.
    """
    _check(scheduler, prompts, seeds, steps, guidance, batch)
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    shape = model.config.in_channels, model.config.sample_size
    if not len(prompts):
        return torch.empty(0, shape[0], shape[1], shape[1], device=device)
    unique = list(dict.fromkeys(["", *prompts]))
    encoded = encoder.encode(unique)
    text = encoded.embeddings.to(device, dtype)                         # [U, T, D]; row 0: the null
    mask = encoded.mask.to(device)                                      # [U, T]
    number = {prompt: row for row, prompt in enumerate(unique)}
    run, out = object(), []
    with tqdm(total=len(prompts), desc="sampling", unit="image", disable=not progress) as bar:
        for first in range(0, len(prompts), batch):
            part = slice(first, first + batch)
            told = [number[p] for p in prompts[part]]
            rows = told if guidance is None else [0] * len(told) + told
            latents = _denoise(model, ready_scheduler(scheduler, steps, device), seeds[part], shape,
                               text[rows], mask[rows], guidance, first, run, on_step, on_guess)
            wrong = (~latents.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            if wrong:
                raise ValueError(f"the latents of {prompts[first + wrong[0]]!r}, seed "
                                 f"{seeds[first + wrong[0]]}, are NaN or infinite; look at the "
                                 "model's weights, the guidance and what hooks put in")
            out.append(latents)
            bar.update(len(told))
    return torch.cat(out)


def _denoise(model: nn.Module, scheduler, seeds: Sequence[int], shape: tuple[int, int],
             text: Tensor, mask: Tensor, guidance: float | None, first: int, run: object,
             on_step: Watcher | None, on_guess: Watcher | None) -> Tensor:
    """One batch [b, 4, 16, 16] from noise to latents; text [2 b, T, D], or [b, T, D] without CFG,
    `first` the number of its first sample."""
    branches = BRANCHES[1:] if guidance is None else BRANCHES
    samples = tuple(range(first, first + len(seeds)))
    noise, generators = _noise(seeds, *shape)
    latents = noise.to(text.device) * scheduler.init_noise_sigma
    options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:     # solvers that add noise
        options["generator"] = generators
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(latents.repeat(len(branches), 1, 1, 1), t).to(text.dtype)
        with tell(Forward(i, samples, branches, len(scheduler.timesteps), run)):
            output = predict(model, x, t.expand(len(x)), text, mask).float()
        if guidance is not None:
            null, conditional = output.chunk(2)
            output = null + guidance * (conditional - null)
        step = scheduler.step(output, t, latents, **options)
        latents = step.prev_sample
        if on_step:
            on_step(i, latents)
        if on_guess:
            on_guess(i, _guess(scheduler, step))
    return latents


def _guess(scheduler: SchedulerMixin, step) -> Tensor:
    """The noise-free latents that a step predicts, where the solver keeps them."""
    if getattr(step, "pred_original_sample", None) is not None:
        return step.pred_original_sample
    if "dpmsolver++" in scheduler.config.get("algorithm_type", ""):
        return scheduler.model_outputs[-1]                              # DPM-Solver++ predicts x_0
    raise ValueError(f"{type(scheduler).__name__} keeps no noise-free latents; leave out on_guess")


def _check(scheduler, prompts, seeds, steps, guidance, batch) -> None:
    """Raises ValueError naming the first wrong option."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one text, {prompts!r}; give a list of prompts")
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed each")
    if guidance is not None and not isfinite(guidance):
        raise ValueError(f"guidance is {guidance}; it must be a finite number, or None for none")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is {batch!r}; it must be an integer of at least 1")
    ready_scheduler(scheduler, steps)
    for seed in seeds:
        _seed(seed)
