"""Attention synopsis: how much attention flows from each object's place to each role of the prompt, head by head.

After the paper's section on the synopsis, for image class c (object 1, object 2, background; soft masks M on the 8 x 8 grid
from the detector) and text role r,

    sum = sum_i sum_j M_ci A_ij [role of j is r],    share = sum / sum_i M_ci,    per token = share / tokens of r

with A the attention pattern. Attention is summed over roles where it is computed, and over places as soon as a chunk's
pictures are known: memory does not grow with their number. Pictures without both objects are left out and counted.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm import tqdm

from .ablation import name, pictures
from .captions import ROLES, parse
from .detect import detect_batch, masks
from .dit import padded
from .hooks import HALVES, Call, Reader, pick, run
from .sample import STEPS
from .scenes import COLORS, SHAPES

CLASSES = ("object 1", "object 2", "background")
VALUES = ("sum", "share", "per token")
SCORES = ("relation", "object")


class RoleAttention(Reader):
    """Keeps, for one batch, the attention to each role: `values` [B, steps, L, H, N, R] in fp16, both halves."""
    per_sample = ("where", "steps", "roles", "null")

    def __init__(self, roles: Tensor, null: Tensor | None = None):
        super().__init__()
        self.roles, self.calls = roles, {}           # roles [S, T, R]: one where a token has the role
        self.null = roles if null is None else null  # [1, T, R] those of the null prompt, which the other half reads

    def read(self, call: Call) -> None:
        told, null = pick(self.roles, call.sample), pick(self.null, call.sample)
        roles = torch.where((call.half == 1)[:, None, None], told, null).to(call.query.dtype)[:, None]
        self.calls[call.step, call.layer] = _weighed(call, roles).half()

    @property
    def values(self) -> Tensor:
        steps = 1 + max(step for step, _ in self.calls)
        stacked = torch.stack([self.calls[k] for k in sorted(self.calls)], 1)                # [B, steps * L, H, N, R]
        return stacked.unflatten(1, (steps, -1))


def _weighed(call: Call, weights: Tensor) -> Tensor:
    """pattern @ weights [B, 1, T, R] -> [B, H, N, R], by the fused attention kernel with the weights as its values."""
    spare = call.query.shape[-1] - weights.shape[-1]                                         # the kernel wants equal widths
    if call.replaced is not None or spare < 0:
        return call.pattern @ weights
    values = pad(weights, (0, spare)).expand(-1, call.query.shape[1], -1, -1)
    return scaled_dot_product_attention(*padded(call.query, call.key, values, call.mask))[..., :weights.shape[-1]]


@dataclass
class Synopsis:
    """Attention by prompt, half, step, layer, head, image class and role; means over the pictures of each prompt."""
    prompts: list[str]
    sum: Tensor         # [P, 2, steps, L, H, 3, R] attention summed over the place's cells and the role's tokens
    share: Tensor       # the same for an average cell of the place: sums to 1 over the roles
    peak: Tensor        # [P, 2, L, H, 3, R] `share` at each picture's strongest step
    tokens: Tensor      # [P, R] tokens of each role
    images: Tensor      # [P] pictures that count
    failed: Tensor      # [P] pictures left out, since an object is missing or found twice

    def table(self, value: str = "share", half: str = "cond", step: int | str = "mean") -> Tensor:
        """[P, L, H, 3, R] of the prompts with a picture; `step` is a number, "mean" or "max" (not for "sum").

        Roles that a prompt does not hold are NaN per token. Raises ValueError for an unknown value, half or step.
        """
        if value not in VALUES or half not in HALVES or (value, step) == ("sum", "max"):
            raise ValueError(f"no {value!r} at step {step!r} in the {half!r} half; choose a value of {', '.join(VALUES)}, a half "
                             f"of {', '.join(HALVES)}, a step number, mean, or max (share and per token only)")
        if step not in ("mean", "max") and (not isinstance(step, int) or not 0 <= step < self.share.shape[2]):
            raise ValueError(f"step {step!r} is out of range; choose 0 to {self.share.shape[2] - 1}, mean or max")
        full = (self.sum if value == "sum" else self.share)[:, HALVES.index(half)]            # [P, steps, L, H, 3, R]
        out = full.mean(1) if step == "mean" else self.peak[:, HALVES.index(half)] if step == "max" else full[:, step]
        if value == "per token":
            out = out / self.tokens[:, None, None, None].where(self.tokens[:, None, None, None] > 0, torch.nan)
        return out[self.images > 0]


def object_masks(images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Soft masks [B, 3, 64] of object 1, object 2 and background, and [B] whether each object was found exactly once."""
    out, found = torch.zeros(len(images), 3, 64), torch.zeros(len(images), dtype=torch.bool)
    for i, (blobs, prompt) in enumerate(zip(detect_batch(images), prompts)):
        said = parse(prompt)
        fits = [[b for b in blobs if b.shape == SHAPES[s] and (c is None or b.color[2 * c] > max(b.color[1], b.color[2 - 2 * c]))]
                for s, c in zip(said.shape, said.color)]
        if len(fits[0]) == len(fits[1]) == 1 and fits[0][0] is not fits[1][0]:
            places = masks([fits[0][0], fits[1][0]]).flatten(1)                               # [2, 64]
            out[i], found[i] = torch.cat([places, (1 - places.sum(0, keepdim=True)).clamp(0, 1)]), True
    return out, found


def role_table(roles: Sequence[Sequence[str]]) -> Tensor:
    """[P, T, R]: one where a token has the role, R in the order of `captions.ROLES`."""
    return torch.tensor([[[r == role for role in ROLES] for r in row] for row in roles]).float()


@torch.no_grad()
def synopsis(model, prompts: Sequence[str], per_prompt: int = 4, seed: int = 1, chunk: int = 32, steps: int = STEPS,
             progress: bool = False, **options) -> Synopsis:
    """Sample `per_prompt` pictures of each prompt and read every cross-attention head on the way.

    Raises ValueError, before sampling, for a prompt that cannot be encoded or that lacks an object or its relation.
    """
    said = [parse(p) for p in prompts]
    for prompt, parsed in zip(prompts, said):
        if None in parsed.shape or parsed.relation is None:
            raise ValueError(f"prompt {prompt!r} lacks {'a relation' if parsed.relation is None else 'a shape'}")
    told, seeds = pictures(prompts, per_prompt, seed)
    roles = role_table(model.encoder.encode(list(prompts)).roles)                             # [P, T, R]
    blocks = model.transformer.transformer_blocks
    shape = (len(prompts), 2, steps, len(blocks), blocks[0].attn1.heads, len(CLASSES), len(ROLES))
    total, share, peak = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape[:2] + shape[3:])
    images, failed = torch.zeros(2, len(prompts), dtype=torch.long)
    for start in tqdm(range(0, len(told), chunk), desc="synopsis", disable=not progress):
        part = slice(start, start + chunk)
        row = torch.arange(len(told))[part] // per_prompt                                     # [b] prompt of each picture
        null = role_table(model.encoder.encode(["", *told[part]]).roles[:1])                  # [1, T, R]
        reader = RoleAttention(roles[row, :null.shape[1]], null)
        latents = run(model, told[part], seeds[part], reader, steps=steps, **options)
        place, found = object_masks(model.vae.decode(latents), told[part])
        images.index_add_(0, row, found.long())
        failed.index_add_(0, row, (~found).long())
        if not found.any():
            continue
        row, place = row[found], place[found].to(latents.device)                              # [b], [b, 3, 64]
        seen = reader.values.unflatten(0, (2, -1))[:, found].transpose(0, 1)                  # [b, 2, steps, L, H, 64, R]
        place = place[:, None, None, None].to(torch.float32)                                  # [b, 1, 1, 1, 3, 64]
        summed = torch.stack([place @ s.float() for s in seen.unbind(2)], 2).cpu()            # a step at a time
        each = summed / place.sum(-1, keepdim=True)[:, :, None].cpu()
        total.index_add_(0, row, summed)
        share.index_add_(0, row, each)
        peak.index_add_(0, row, each.amax(2))
    count = images.clamp_min(1)
    tensors = [x / count.view(-1, *[1] * (x.ndim - 1)) for x in (total, share, peak)]
    return Synopsis(list(prompts), *tensors, roles.sum(1), images, failed)


def scores(table: Tensor) -> dict[str, Tensor]:
    """Two scores a head from a "per token" table [P, L, H, 3, R], each [P, L, H].

    relation: attention from both objects' places to a relation token. object: attention from each object's place to its
    own shape word, minus that to the other's.
    """
    r, s1, s2 = (ROLES.index(x) for x in ("relation", "shape1", "shape2"))
    own = table[..., 0, s1] + table[..., 1, s2] - table[..., 0, s2] - table[..., 1, s1]
    return {"relation": (table[..., 0, r] + table[..., 1, r]) / 2, "object": own / 2}


def ranking(found: Synopsis, n: int = 2000, seed: int = 0, step: int | str = "mean") -> pd.DataFrame:
    """All heads by both scores: name, layer, head, score, mean, 95 % interval over prompts, and p under a permutation null.

    The null shuffles, within each prompt, which content word (shape, colour, relation) is which, so that it holds if
    the head does not care about a word's role; p is the share of shuffles that reach the mean, times the number of heads
    (Bonferroni), so at least (heads) / (n + 1). Raises ValueError if no picture counts.
    """
    table = found.table("per token", "cond", step).nan_to_num()                               # [P, L, H, 3, R]
    if not len(table):
        raise ValueError("no picture of the synopsis counts, so its heads cannot be ranked")
    content = [ROLES.index(r) for r in ("colour1", "shape1", "relation", "colour2", "shape2")]
    rng, (count, layers, heads) = np.random.default_rng(seed), table.shape[:3]
    true = scores(table)
    hits = {kind: torch.zeros(layers, heads) for kind in SCORES}
    words = table[..., content].movedim(-1, 1)                                                # [P, 5, L, H, 3]
    for _ in range(n):
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(len(content)), (count, 1)), axis=1))
        shuffled = table.clone()
        shuffled[..., content] = words[torch.arange(count)[:, None], order].movedim(1, -1)
        for kind, value in scores(shuffled).items():
            hits[kind] += value.mean(0) >= true[kind].mean(0)
    weights = torch.from_numpy(rng.multinomial(count, np.full(count, 1 / count), size=2000)).float() / count
    rows = []
    for kind, value in true.items():
        draws = torch.einsum("bp,plh->blh", weights, value)
        low, high, mean = draws.quantile(0.025, 0), draws.quantile(0.975, 0), value.mean(0)
        p = ((1 + hits[kind]) / (n + 1) * layers * heads).clamp(max=1.0)
        rows += [(name(i, j), i, j, kind, *(float(x[i, j]) for x in (mean, low, high, p)))
                 for i in range(layers) for j in range(heads)]
    columns = ["name", "layer", "head", "score", "mean", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns).sort_values(["score", "mean"], ascending=[False, False], ignore_index=True)
