"""Heatmap: where in the picture each head looks at a word, at any size of picture and of model.

Attention to the word's tokens is summed, and averaged over the sampling steps, while the model
runs: what is kept is one map a head.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..hooks.core import BRANCHES, Call
from ..hooks.run import run
from ..model.pipeline import Model
from ..text.words import word_tokens
from .heads import Head, check_heads, heads_of
from .synopsis import RoleAttention

_GLOW = (255, 60, 0)    # the overlay's colour at a map's maximum


class WordAttention(RoleAttention):
    """Sums, over steps, the attention of each image token to groups of text tokens: `total[layer]`
    [S, H, N, R] of the conditional branch, and `steps_seen`, of one batch of S samples."""

    def __init__(self, groups: Tensor, heads: Sequence[Head] | None = None,
                 steps: Sequence[int] | None = None):
        super().__init__(groups.float())                         # groups [S or 1, T, R]
        self.where, self.steps = heads, None if steps is None else list(steps)

    def start(self) -> None:
        super().start()
        self.total: dict[int, Tensor] = {}
        self.steps_seen: set[int] = set()

    def read(self, call: Call) -> None:
        super().read(call)
        rows = call.forward.rows(BRANCHES[1])
        seen = self.calls.pop((call.step, call.layer))[rows].float()
        kept = self.reduced(seen, call.sample[rows])
        self.total[call.layer] = self.total.get(call.layer, 0) + kept
        self.steps_seen.add(call.step)

    def reduced(self, seen: Tensor, samples: Tensor) -> Tensor:
        """What is kept of attention [b, H, N, R] to the groups, for these samples [b]."""
        return seen


@dataclass
class WordMap:
    """Attention of K heads to a word in one picture, on the CPU."""
    prompt: str
    word: str
    tokens: list[str]    # the word's, as the text encoder cuts it
    heads: list[Head]    # [K]
    maps: Tensor         # [K, h, w] share of each image token's attention, mean over steps, 0 to 1
    picture: Tensor      # uint8 [3, H, W]

    def overlay(self, head: Head | None = None) -> Tensor:
        """The picture with one head's map laid over it, or the mean of all: uint8 [3, H, W].

        Raises ValueError for a head that has no map.
        """
        if head is not None and head not in self.heads:
            raise ValueError(f"head {head} has no map here; choose from {self.heads}")
        shown = self.maps.mean(0) if head is None else self.maps[self.heads.index(head)]
        size = self.picture.shape[1:]
        wide = interpolate(shown[None, None], size=size, mode="bilinear", align_corners=False)[0]
        share = 0.75 * wide / wide.max().clamp_min(1e-12)                              # [1, H, W]
        glow = torch.tensor(_GLOW, dtype=torch.float32)[:, None, None]
        return (self.picture * (1 - share) + glow * share).round().to(torch.uint8)


@torch.no_grad()
def heatmap(model: Model, prompt: str, word: str, heads: Sequence[Head] | None = None,
            seed: int = 0, when: Sequence[int] | None = None, **options) -> WordMap:
    """Draw one picture, and map the attention of heads (all by default) to a word of its prompt, at
    the steps `when` (all). Options as of `model.latents`.

    Raises ValueError, before sampling, for a word that the prompt does not hold, or a head or step
    out of range.
    """
    chosen = list(heads_of(model) if heads is None else heads)
    if not chosen:
        raise ValueError("heads is empty; name at least one, or None for all")
    check_heads(model, chosen)
    text = model.encoder.encode(["", prompt])[[1]]               # padded as when it is drawn
    tokens = word_tokens(model.encoder, prompt, word)
    where = torch.zeros_like(text.mask)
    where[0, tokens] = True
    reader = WordAttention(where[:, :, None], chosen, when)
    latents = run(model, [prompt], [seed], reader, **options)
    patch = model.transformer.config["patch_size"]
    grid = [n // patch for n in latents.shape[-2:]]
    each = [reader.total[layer][0, head, :, 0] / len(reader.steps_seen) for layer, head in chosen]
    maps = torch.stack(each).unflatten(1, grid).cpu()
    return WordMap(prompt, word, [text.tokens[0][i] for i in tokens], chosen, maps,
                   model.vae.decode(latents)[0].cpu())
