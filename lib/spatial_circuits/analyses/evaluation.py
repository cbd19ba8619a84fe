"""Evaluation: sample a model's prompts and score the pictures against the ceiling."""
import pandas as pd
from tqdm import tqdm

from ..data.detect import check_mode
from ..data.metrics import METRICS, ceiling, check_prompts, score
from ..model.pipeline import Model
from .intervals import summarise
from .sweep import pictures

_CHUNK = 128  # pictures sampled, decoded and scored at once


def evaluate(model: Model, prompts: list[str], images_per_prompt: int = 4, seed: int = 1,
             mode: str = "clean", progress: bool = False, **options) -> pd.DataFrame:
    """Score `images_per_prompt` samples of each prompt: the frame of `metrics.score` plus the
    column `seed`, as of `sweep.pictures`. Options as of `sample_latents`.

    Raises ValueError, before sampling, for a prompt that cannot be encoded or scored, no prompts or
    images, an unknown mode or a seed out of range; and on the way, with the prompt's name, for
    latents that are not finite.
    """
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt is {images_per_prompt}; it must be at least 1")
    check_mode(mode)
    texts, seeds = pictures(prompts, images_per_prompt, seed)
    model.encoder.encode(list(prompts))                  # refuses what cannot be encoded
    check_prompts(prompts)
    frames = []
    with tqdm(total=len(texts), desc=f"evaluating {model.name}", unit="image",
              disable=not progress) as bar:
        for start in range(0, len(texts), _CHUNK):
            part = slice(start, start + _CHUNK)
            latents = model.latents(texts[part], seeds[part], **options)
            frame = score(model.vae.decode(latents), texts[part], mode)
            frames.append(frame.assign(seed=seeds[part]))
            bar.update(len(frame))
    return pd.concat(frames, ignore_index=True)


def vae_ceiling(model: Model, prompts: list[str], per_prompt: int = 1, seed: int = 0
                ) -> pd.DataFrame:
    """Scores of true scenes after a round trip through the model's VAE: a frame as of
    `metrics.ceiling`, the best that any model behind this VAE could do."""
    return ceiling(prompts, per_prompt, seed,
                   decode=lambda images: model.vae.decode(model.vae.encode(images)))


def report(frame: pd.DataFrame, mode: str = "clean", seed: int = 0, preset: str | None = None
           ) -> dict[str, dict[str, float]]:
    """Each metric's mean, low and high (95 % over prompts), ceiling and of_ceiling, their ratio.

    The ceiling is that of ground-truth pictures under the same `mode`, drawn as the model's
    training data were: `preset` "clean" or "paper", by default the one of the mode's name. Raises
    ValueError for an unknown mode or preset.
    """
    check_mode(mode)
    prompts = list(dict.fromkeys(frame["prompt"]))
    best = summarise(ceiling(prompts, 16, seed, preset or mode, mode))["mean"]
    out = {}
    for name, row in summarise(frame).loc[list(METRICS)].iterrows():
        of = row["mean"] / best[name] if best[name] else float("nan")
        out[str(name)] = {"mean": float(row["mean"]), "low": float(row["low"]),
                          "high": float(row["high"]), "ceiling": float(best[name]),
                          "of_ceiling": float(of)}
    return out
