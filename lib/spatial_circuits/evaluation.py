"""Evaluation: sample a model's prompts and score the pictures against the ceiling."""
from collections.abc import Callable

import pandas as pd
import torch
from tqdm import tqdm

from .metrics import METRICS, ceiling, prompt_set, score, summarise
from .noise import Noise
from .pretrained import Model
from .probe import text_gain
from .sample import sample
from .text import Encoder
from .vae import VAE


def evaluate(model: Model, prompts: list[str], images_per_prompt: int = 4, seed: int = 1, mode: str = "clean",
             progress: bool = False, **options) -> pd.DataFrame:
    """Score `images_per_prompt` samples of each prompt: `metrics.score`'s frame plus the column `seed`.

    Image k of prompt i has the seed `seed * 1_000_000 + i * images_per_prompt + k`. Options as in `sample.sample`.
    Raises ValueError, before sampling, for a prompt that cannot be encoded or scored.
    """
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt is {images_per_prompt}; it must be at least 1")
    model.encoder.encode(list(prompts))
    score(torch.zeros(len(prompts), 3, 128, 128, dtype=torch.uint8), prompts, mode)  # refuses what cannot be scored
    told = [p for p in prompts for _ in range(images_per_prompt)]
    seeds = [seed * 1_000_000 + i for i in range(len(told))]
    frames = []
    with tqdm(total=len(told), desc=f"evaluating {model.name}", unit="image", disable=not progress) as bar:
        for start in range(0, len(told), 128):
            part = slice(start, start + 128)
            frame = score(model.images(told[part], seeds[part], **options), told[part], mode)
            frames.append(frame.assign(seed=seeds[part]))
            bar.update(len(frame))
    return pd.concat(frames, ignore_index=True)


def report(frame: pd.DataFrame, mode: str = "clean", seed: int = 0) -> dict:
    """Each metric's mean, 95 % interval over prompts, ceiling (ground-truth pictures) and their ratio, as plain numbers."""
    prompts = list(dict.fromkeys(frame["prompt"]))
    ours, best = summarise(frame), summarise(ceiling(prompts, 16, seed, mode=mode))
    return {name: {"mean": float(ours.loc[name, "mean"]), "low": float(ours.loc[name, "low"]),
                   "high": float(ours.loc[name, "high"]), "ceiling": float(best.loc[name, "mean"]),
                   "of_ceiling": float(ours.loc[name, "mean"] / best.loc[name, "mean"])} for name in METRICS}


def monitor(noise: Noise, encoder: Encoder, vae: VAE, count: int = 132) -> Callable[[torch.nn.Module], dict]:
    """What training logs now and then: metrics of `count` prompts (one image each) and the text gain by noise level."""
    prompts = prompt_set("264")[:count]
    scheduler = noise.scheduler()

    def measure(transformer) -> dict:
        frame = score(vae.decode(sample(transformer, scheduler, encoder, prompts, range(count))), prompts)
        gain = text_gain(transformer, noise, encoder, vae, times=(0.999, 0.9, 0.8, 0.5), count=128)
        return {**{name: round(float(frame[name].mean()), 4) for name in METRICS},
                "text_gain": {kind: {str(t): round(v, 6) for t, v in gain[kind].items()} for kind in gain.columns}}

    return measure
