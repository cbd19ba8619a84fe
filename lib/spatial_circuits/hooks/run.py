"""Run: sample a model under hooks."""
from collections.abc import Sequence

from torch import Tensor

from ..model.pipeline import Model
from ..model.sampler import STEPS, ready_scheduler
from .attach import hooked
from .core import Hook


def run(model: Model, prompts: Sequence[str], seeds: Sequence[int], *hooks: Hook,
        steps: int = STEPS, **options) -> Tensor:
    """Latents [B, 4, 16, 16] on the model's device, sampled under hooks; options as of
    `sampler.sample_latents`.

    Raises ValueError, before sampling, for a hook made for another number of samples or a step that
    does not exist.
    """
    forwards = len(ready_scheduler(model.scheduler, steps).timesteps)
    for part in (p for hook in hooks for p in hook.parts()):
        part.fit(len(prompts), forwards)
    with hooked(model.transformer, *hooks):
        return model.latents(list(prompts), list(seeds), steps=steps, **options)
