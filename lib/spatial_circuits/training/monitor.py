"""Monitor: what a training run measures of itself now and then."""
from collections.abc import Callable

import torch

from ..data.metrics import METRICS, prompt_set, score
from ..model.noise import Noise
from ..model.sampler import sample_latents
from ..model.vae import VAE
from ..text.batch import Encoder
from .text_gain import text_gain


def monitor(noise: Noise, encoder: Encoder, vae: VAE,
            count: int = 132) -> Callable[[torch.nn.Module], dict]:
    """What training logs now and then: metrics of `count` prompts (one image each) and the text
    gain by noise level."""
    prompts = prompt_set("264")[:count]
    scheduler = noise.scheduler()

    def measure(transformer) -> dict:
        latents = sample_latents(transformer, scheduler, encoder, prompts, list(range(count)))
        frame = score(vae.decode(latents), prompts)
        gain = text_gain(transformer, noise, encoder, vae, times=(0.999, 0.9, 0.8, 0.5), count=128)
        gains = {kind: {str(t): round(v, 6) for t, v in gain[kind].items()} for kind in gain}
        return {**{name: round(float(frame[name].mean()), 4) for name in METRICS},
                "text_gain": gains}

    return measure
