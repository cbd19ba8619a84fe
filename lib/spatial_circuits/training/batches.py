"""Batches: what a training step sees, as a pure function of (seed, step)."""
import torch
from torch import Tensor

from ..data.captions import all_captions, caption_index
from ..data.scenes import UPPER_FIRST, sample_scenes, swapped, uniform
from ..model.vae import VAE
from ..text.batch import Encoder, TextBatch
from .recipe import Recipe
from .scene_cache import scene_encoder, scene_latents


def encode_captions(encoder: Encoder) -> TextBatch:
    """The null prompt in row 0, then every training caption in the order of `all_captions`."""
    return encoder.encode(["", *all_captions()])


def risen(done: float, start: float, length: float) -> float:
    """0 until `done` reaches `start`, then linearly to 1 over `length`; a jump without length."""
    if done < start:
        return 0.0
    return min(1.0, (done - start) / length) if length else 1.0


class Batches:
    """Training batches: latents and text rows. `captions` come from `encode_captions`; scenes are
    encoded once and kept (`recipe.cache`), or in every step."""

    def __init__(self, recipe: Recipe, captions: TextBatch, vae: VAE, device: torch.device,
                 progress: bool = True):
        self.recipe, self.device = recipe, device
        self.text, self.mask = captions.embeddings.to(device), captions.mask.to(device)
        vae = vae.to(device)
        self.encode = scene_encoder(recipe, vae, device)
        if recipe.cache:
            self.latents = scene_latents(recipe, vae, device, progress)

    def batch(self, step: int, rows: Tensor, part: slice = slice(None)) -> tuple[Tensor, ...]:
        """Sample numbers [b] of all processes -> x0, eps [p, 4, 16, 16], t [p], text [p, T, D],
        mask [p, T] of the `part` that this process trains on. Random numbers are drawn for the
        whole batch: they do not depend on the number of processes."""
        recipe = self.recipe
        index = rows % recipe.cache if recipe.cache else rows
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + int(rows[0]))
        x0 = self._latents(index[part])
        eps = torch.randn((len(rows), *x0.shape[1:]), generator=generator, device=self.device)
        order = torch.randperm(len(rows), generator=generator, device=self.device)
        u = uniform(recipe.seed + 1, rows, 5)                           # [b, 5], new on every visit
        widened = risen(step / recipe.steps, recipe.pure, recipe.widen)
        t = recipe.noise.times((order + u[:, 3]) / len(rows), widened)  # stratified over the batch
        row = self._captions(step, index, u)
        return x0, eps[part], t[part], self.text[row[part]], self.mask[row[part]]

    def _latents(self, index: Tensor) -> Tensor:
        if not self.recipe.cache:
            return self.encode(index)
        return self.latents[index].float()

    def _captions(self, step: int, index: Tensor, u: Tensor) -> Tensor:
        """Rows [b] of the caption table: colours dropped, objects exchanged, or the null prompt."""
        recipe = self.recipe
        scenes = sample_scenes(index, recipe.seed, recipe.preset)
        done = step / recipe.steps
        dropping = recipe.drop_colors * risen(done, recipe.drop_from, recipe.drop_over)
        scenes = scenes.replace(named=u[:, :2] >= dropping)
        if recipe.first_up != 0.5:
            up = 0.5 + (recipe.first_up - 0.5) * (1 - risen(done, 0.0, recipe.first_until))
            upper = torch.isin(scenes.relation, UPPER_FIRST.to(self.device))
            scenes = swapped(scenes, upper != (u[:, 4] < up))
        return torch.where(u[:, 2] < recipe.text_dropout, 0, 1 + caption_index(scenes))
