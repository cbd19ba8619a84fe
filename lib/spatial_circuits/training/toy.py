"""Toy: why word order is hard, in a minute a run.

The same captions, scenes and text encoder as the models', but a net of 3 blocks of width 64, and in
place of VAE latents a floor plan: where which shape lies, and its colour. Near pure noise (t -> 1)
the caption is all that the net has. Ingredients of the task and of the recipe are put in one by
one, and the gain of the relation's order tells after how many pictures it is known.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.captions import caption_index
from ..data.scenes import (
    FIRST_PHRASE,
    GRID,
    PHRASES_PER_RELATION,
    SHAPES,
    SIZE,
    Scenes,
    sample_scenes,
    swapped,
    uniform,
)
from ..model.noise import Noise
from ..model.transformer import build_transformer, predict
from ..text.batch import Encoder
from .batches import encode_captions
from .loop import batch_loss, optimizers, set_rates, update
from .recipe import Recipe, check_counts
from .text_gain import wrong

NEAR = 0.999                # the time at which gains are measured
HALF = 12                   # px; half the side of the square that stands for an object
_HELD_OUT = 90_001          # the stream of scenes that gains are measured on


@dataclass(frozen=True)
class Toy:
    """What a toy run has to learn, and from what."""
    wordings: int = 3           # phrases a relation, at most; there are 2 or 3 of each
    colours: bool = True        # drawn and told; else neither
    quadruples: bool = False    # scenes by fours that differ in who is where and who is told first
    noise: Noise = field(default_factory=lambda: Noise(prediction="sample", top=1.0, high=0.0))


def floor_plan(scenes: Scenes, colours: bool = True) -> Tensor:
    """[B, 4, 16, 16]: a channel a shape, 1 where one lies, and one of colour, red 1, blue -1; each
    scaled to about unit variance."""
    cells = (torch.arange(2 * GRID) + 0.5) * SIZE / (2 * GRID)
    inside = (scenes.xy[..., None] - cells).abs() < HALF                    # [B, object, axis, 16]
    lies = (inside[:, :, 1, :, None] & inside[:, :, 0, None]).float()       # [B, object, 16, 16]
    plan = torch.zeros(len(scenes), 4, 2 * GRID, 2 * GRID)
    place = scenes.shape[:, :, None, None].expand_as(lies)
    plan[:, :len(SHAPES)].scatter_add_(1, place, lies)
    if colours:
        plan[:, 3] = (lies * (1 - 2 * scenes.color)[:, :, None, None]).sum(1)
    return 5 * plan


def places_exchanged(scenes: Scenes) -> Scenes:
    """The two objects in each other's place, told in the same order: the relation is reversed."""
    everywhere = torch.ones(len(scenes), dtype=torch.bool)
    other = swapped(scenes, everywhere)
    return scenes.replace(xy=other.xy, relation=other.relation, phrase=other.phrase)


def toy_scenes(toy: Toy, index: Tensor, seed: int) -> Scenes:
    """Scenes [B] as the toy tells them; with quadruples, four of each number in place of one."""
    named = torch.full((len(index), 2), toy.colours)
    scenes = sample_scenes(index, seed, named=named)
    kinds = PHRASES_PER_RELATION[scenes.relation].clamp(max=toy.wordings)
    wording = (uniform(seed + 2, index, 1)[:, 0] * kinds).long()
    scenes = scenes.replace(phrase=FIRST_PHRASE[scenes.relation] + wording)
    if not toy.quadruples:
        return scenes
    everywhere = torch.ones(len(index), dtype=torch.bool)
    both = [scenes, places_exchanged(scenes)]
    four = [*both, *(swapped(s, everywhere) for s in both)]
    return Scenes(*(torch.cat([getattr(s, name) for s in four]) for name in vars(scenes)))


@torch.no_grad()
def toy_gain(net: torch.nn.Module, toy: Toy, told: Callable[[Scenes], tuple[Tensor, Tensor]],
             count: int = 256) -> dict[str, float]:
    """Relative rise of the x_0 error at t = `NEAR` on held-out scenes, by what the caption has
    wrong: shape, axis, order, and with colours binding."""
    scenes = toy_scenes(Toy(toy.wordings, toy.colours), torch.arange(count), _HELD_OUT)
    x0, t = floor_plan(scenes, toy.colours), torch.full((count,), NEAR)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(_HELD_OUT))
    alpha, sigma = toy.noise.levels(t)
    x_t = alpha * x0 + sigma * eps

    def error(said: Scenes) -> float:
        output = predict(net, x_t, t * 1000, *told(said))
        return (toy.noise.picture(output, x_t, t) - x0).square().mean().item()
    right = error(scenes)
    gains = {kind: error(said) / right - 1 for kind, said in wrong(scenes).items()}
    if not toy.colours:
        del gains["binding"]
    return gains


def train_toy(toy: Toy, encoder: Encoder, steps: int = 800, batch: int = 128, seed: int = 0,
              every: int = 50, progress: bool = True) -> pd.DataFrame:
    """Train a toy and return its gains, indexed by the pictures seen; constant rates, unbiased
    captions, all on the CPU.

    Raises ValueError for numbers below 1, or a batch that quadruples do not divide.
    """
    check_counts(steps=steps, batch=batch, every=every, wordings=toy.wordings)
    if toy.quadruples and batch % 4:
        raise ValueError(f"batch is {batch}; with quadruples it must be a multiple of 4")
    recipe = Recipe(size="toy", steps=steps, batch=batch, noise=toy.noise, decay=0.0, seed=seed)
    text = encode_captions(encoder)
    net = build_transformer(recipe.size, encoder.dim, seed)
    opts, rows = optimizers(net, recipe), []

    def told(scenes: Scenes) -> tuple[Tensor, Tensor]:
        row = 1 + caption_index(scenes)
        return text.embeddings[row], text.mask[row]
    for step in tqdm(range(steps), desc="toy", disable=not progress):
        share = batch // 4 if toy.quadruples else batch
        index = step * share + torch.arange(share)
        scenes = toy_scenes(toy, index, seed)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        eps = torch.randn((share, 4, 2 * GRID, 2 * GRID), generator=generator)
        u = (torch.arange(share) + torch.rand(share, generator=generator)) / share
        copies = batch // share                         # of the noise, alike within a quadruple
        loss = batch_loss(net, toy.noise, floor_plan(scenes, toy.colours),
                          eps.repeat(copies, 1, 1, 1), toy.noise.times(u).repeat(copies),
                          *told(scenes))
        loss.backward()
        set_rates(opts, step, recipe)
        update(opts, list(net.parameters()), recipe.clip)
        if (step + 1) % every == 0 or step + 1 == steps:
            rows.append({"images": (step + 1) * batch, **toy_gain(net, toy, told)})
    return pd.DataFrame(rows).set_index("images")
