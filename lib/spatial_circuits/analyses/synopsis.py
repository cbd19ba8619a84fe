"""Attention synopsis: how much attention flows from each object's image tokens to each role of the
prompt, head by head.

After the section on the synopsis in arXiv 2601.06338, for image class c (object 1, object 2,
background; soft masks M over the image tokens i, from the detector) and text role r,

    sum = sum_i sum_j M_ci A_ij [role of j is r]
    share = sum / sum_i M_ci
    per token = share / tokens of r

with A the attention pattern. Attention is summed over roles where it is computed, and over image
tokens as soon as a chunk's pictures are known: memory does not grow with their number. Pictures
without both objects are left out and counted.
"""
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm import tqdm

from ..data.captions import ROLES, parse
from ..data.detect import Detection, detect_batch, masks
from ..data.scenes import GRID, SHAPES
from ..hooks.core import BRANCHES, Call, Reader, pick
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import padded
from ..text.roles import role_table
from .heads import head_name, layers_and_heads
from .intervals import bootstrap_weights, percentiles
from .sweep import pictures

CLASSES = ("object 1", "object 2", "background")
VALUES = ("sum", "share", "per token")
SCORES = ("relation", "object")
SHUFFLES = 2000  # of the permutation null


class RoleAttention(Reader):
    """Keeps, for one batch, the attention to each role: `values` [2 B, steps, L, H, N, R] in fp16,
    the unconditional branch first."""
    per_sample = ("where", "steps", "roles", "null")

    def __init__(self, roles: Tensor, null: Tensor | None = None):
        super().__init__()
        self.roles = roles                           # [S, T, R] one where a token has the role
        self.null = roles if null is None else null  # [1, T, R] of the null prompt

    def start(self) -> None:
        self.calls: dict[tuple[int, int], Tensor] = {}

    def read(self, call: Call) -> None:
        told, null = pick(self.roles, call.sample), pick(self.null, call.sample)
        cond = (call.branch == BRANCHES.index("cond"))[:, None, None]
        roles = torch.where(cond, told, null).to(call.query.dtype)[:, None]
        self.calls[call.step, call.layer] = _weighed(call, roles).half()

    @property
    def values(self) -> Tensor:
        steps = 1 + max(step for step, _ in self.calls)
        stacked = torch.stack([self.calls[k] for k in sorted(self.calls)], 1)
        return stacked.unflatten(1, (steps, -1))


def _weighed(call: Call, weights: Tensor) -> Tensor:
    """pattern @ weights [B, 1, T, R] -> [B, H, N, R], by the fused attention kernel with the
    weights as its values."""
    spare = call.query.shape[-1] - weights.shape[-1]     # the kernel wants equal widths
    if call.replaced is not None or spare < 0:
        return call.pattern @ weights
    values = pad(weights, (0, spare)).expand(-1, call.query.shape[1], -1, -1)
    seen = scaled_dot_product_attention(*padded(call.query, call.key, values, call.mask))
    return seen[..., :weights.shape[-1]]


@dataclass
class Synopsis:
    """Attention by prompt, branch (unconditional first), step, layer, head, image class and role;
    means over the pictures of each prompt, on the CPU."""
    prompts: list[str]
    sum: Tensor         # [P, 2, steps, L, H, 3, R] over the class's image tokens, role's tokens
    share: Tensor       # the same for an average image token of the class: sums to 1 over the roles
    peak: Tensor        # [P, 2, L, H, 3, R] `share` at each picture's strongest step
    tokens: Tensor      # [P, R] tokens of each role
    images: Tensor      # [P] pictures that count
    failed: Tensor      # [P] pictures left out, since an object is missing or found twice

    def table(self, value: str = "share", branch: str = "cond", step: int | str = "mean") -> Tensor:
        """[P', L, H, 3, R] of the P' prompts that have a picture; classes as CLASSES, roles as
        ROLES.

        `value` is "sum" (attention, up to N), "share" (of an image token's attention, 0 to 1) or
        "per token" (share over the role's tokens; NaN for roles that a prompt does not hold);
        `step` a number, "mean", or "max" (not for "sum"). Raises ValueError for any other.
        """
        if value not in VALUES or branch not in BRANCHES or (value, step) == ("sum", "max"):
            raise ValueError(f"no {value!r} at step {step!r} in the {branch!r} branch; choose a "
                             f"value of {', '.join(VALUES)}, a branch of {', '.join(BRANCHES)}, a "
                             "step number, mean, or max (share and per token only)")
        steps = self.share.shape[2]
        if step not in ("mean", "max") and not (isinstance(step, int) and 0 <= step < steps):
            raise ValueError(f"step {step!r} is out of range; choose 0 to {steps - 1}, mean or max")
        full = (self.sum if value == "sum" else self.share)[:, BRANCHES.index(branch)]
        if step == "max":
            out = self.peak[:, BRANCHES.index(branch)]
        else:
            out = full.mean(1) if step == "mean" else full[:, int(step)]
        if value == "per token":
            tokens = self.tokens[:, None, None, None]
            out = out / tokens.where(tokens > 0, torch.nan)
        return out[self.images > 0]


def object_masks(images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Soft masks [B, 3, N] over the image tokens, row by row, of object 1, object 2 and background,
    and [B] whether each object was found exactly once. images: uint8 [B, 3, 128, 128]."""
    out = torch.zeros(len(images), 3, GRID * GRID)
    found = torch.zeros(len(images), dtype=torch.bool)
    for i, (blobs, prompt) in enumerate(zip(detect_batch(images), prompts)):
        said = parse(prompt)
        one, two = ([b for b in blobs if _fits(b, s, c)] for s, c in zip(said.shape, said.color))
        if len(one) == len(two) == 1 and one[0] is not two[0]:
            objects = masks([one[0], two[0]]).flatten(1)                                 # [2, N]
            rest = (1 - objects.sum(0, keepdim=True)).clamp(0, 1)
            out[i], found[i] = torch.cat([objects, rest]), True
    return out, found


def _fits(blob: Detection, shape: int | None, color: int | None) -> bool:
    """Is this the object? A colour by its brightest channel, red or blue; None is any."""
    if shape is None or blob.shape != SHAPES[shape]:
        return False
    return color is None or blob.color[2 * color] > max(blob.color[1], blob.color[2 - 2 * color])


@torch.no_grad()
def synopsis(model: Model, prompts: Sequence[str], per_prompt: int = 4, seed: int = 1,
             chunk: int = 32, steps: int = STEPS, progress: bool = False, **options) -> Synopsis:
    """Sample `per_prompt` pictures of each prompt and read every cross-attention head on the way.

    Options as of `sample_latents`. Raises ValueError, before sampling, for a prompt that cannot be
    encoded or that lacks an object or its relation, no pictures or no chunk; and on the way, with
    the prompt's name, for latents that are not finite.
    """
    for prompt in prompts:
        said = parse(prompt)
        if None in said.shape or said.relation is None:
            lacks = "a relation" if said.relation is None else "a shape"
            raise ValueError(f"prompt {prompt!r} lacks {lacks}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    texts, seeds = pictures(prompts, per_prompt, seed)
    roles = role_table(model.encoder.encode(list(prompts)).roles)                        # [P, T, R]
    shape = (len(prompts), 2, steps, *layers_and_heads(model), len(CLASSES), len(ROLES))
    total, share, peak = (torch.zeros(s) for s in (shape, shape, shape[:2] + shape[3:]))
    images, failed = torch.zeros(2, len(prompts), dtype=torch.long)
    for start in tqdm(range(0, len(texts), chunk), desc="synopsis", disable=not progress):
        part = slice(start, start + chunk)
        row = torch.arange(len(texts))[part] // per_prompt               # [b] prompt of each
        null = role_table(model.encoder.encode(["", *texts[part]]).roles[:1])            # [1, T, R]
        reader = RoleAttention(roles[row, :null.shape[1]], null)
        latents = run(model, texts[part], seeds[part], reader, steps=steps, **options)
        mask, found = object_masks(model.vae.decode(latents), texts[part])
        images.index_add_(0, row, found.long())
        failed.index_add_(0, row, (~found).long())
        if not found.any():
            continue
        row, mask = row[found], mask[found]                                              # [b, 3, N]
        seen = reader.values.unflatten(0, (2, -1))[:, found.to(latents.device)]
        seen = seen.transpose(0, 1)                                      # [b, 2, steps, L, H, N, R]
        weights = mask.to(latents.device)[:, None, None, None]           # [b, 1, 1, 1, 3, N]
        sums = torch.stack([weights @ s.float() for s in seen.unbind(2)], 2).cpu()   # step by step
        each = sums / mask.sum(-1)[:, None, None, None, None, :, None]
        total.index_add_(0, row, sums)
        share.index_add_(0, row, each)
        peak.index_add_(0, row, each.amax(2))
    count = images.clamp_min(1)
    total, share, peak = (x / count.view(-1, *[1] * (x.ndim - 1)) for x in (total, share, peak))
    return Synopsis(list(prompts), total, share, peak, roles.sum(1), images, failed)


def attention_scores(table: Tensor) -> dict[str, Tensor]:
    """Two scores a head from a "per token" table [P, L, H, 3, R], each [P, L, H].

    relation: attention from both objects' image tokens to a relation token. object: attention from
    each object's image tokens to its own shape word, minus that to the other's.
    """
    r, s1, s2 = (ROLES.index(x) for x in ("relation", "shape1", "shape2"))
    own = table[..., 0, s1] + table[..., 1, s2] - table[..., 0, s2] - table[..., 1, s1]
    return {"relation": (table[..., 0, r] + table[..., 1, r]) / 2, "object": own / 2}


def smallest_p(heads: int, n: int = SHUFFLES) -> float:
    """The smallest corrected p that n shuffles can show for so many heads; if reached, a bound."""
    return min(1.0, heads / (n + 1))


def spelled_p(p: float, heads: int, n: int = SHUFFLES) -> str:
    """A p of `ranking` in words: "p = 0.036", or "p <= 0.012" where it is but a bound."""
    least = smallest_p(heads, n)
    sign = "<=" if p <= least * (1 + 1e-6) and p < 1 else "="
    return f"p {sign} {p:.3f}"


def ranking(found: Synopsis, n: int = SHUFFLES, seed: int = 0, step: int | str = "mean"
            ) -> pd.DataFrame:
    """All heads by both scores: name, layer, head, score, mean, low, high (95 % over prompts), and
    p under a permutation null.

    The null shuffles, within each prompt, which content word (shape, colour, relation) is which,
    so that it holds if the head does not care about a word's role; p is the share of shuffles that
    reach the mean, times the number of heads (Bonferroni), and at least `smallest_p`. Raises
    ValueError if no picture counts, or n < 1; warns if n is too small for any p below .05.
    """
    table = found.table("per token", "cond", step).nan_to_num()          # [P, L, H, 3, R]
    if not len(table):
        raise ValueError("no picture of the synopsis counts, so its heads cannot be ranked")
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    content = [ROLES.index(r) for r in ("colour1", "shape1", "relation", "colour2", "shape2")]
    rng, (count, layers, heads) = np.random.default_rng(seed), table.shape[:3]
    if smallest_p(layers * heads, n) >= 0.05:
        warnings.warn(f"{n} shuffles show no corrected p below {smallest_p(layers * heads, n):.2f} "
                      f"for {layers * heads} heads; take {20 * layers * heads}", stacklevel=2)
    true = attention_scores(table)
    hits = {kind: torch.zeros(layers, heads) for kind in SCORES}
    words = table[..., content].movedim(-1, 1)                           # [P, 5, L, H, 3]
    for _ in range(n):
        order = rng.permuted(np.tile(np.arange(len(content)), (count, 1)), axis=1)
        shuffled = table.clone()
        moved = words[torch.arange(count)[:, None], torch.from_numpy(order)]
        shuffled[..., content] = moved.movedim(1, -1)
        for kind, value in attention_scores(shuffled).items():
            hits[kind] += value.mean(0) >= true[kind].mean(0)
    weights = bootstrap_weights(count, seed=rng)                         # after the shuffles, once
    rows = []
    for kind, value in true.items():
        low, high = percentiles(np.tensordot(weights, value.numpy(), 1) / count)
        mean, p = value.mean(0), ((1 + hits[kind]) / (n + 1) * layers * heads).clamp(max=1.0)
        rows += [(head_name(i, j), i, j, kind, *(float(x[i, j]) for x in (mean, low, high, p)))
                 for i in range(layers) for j in range(heads)]
    columns = ["name", "layer", "head", "score", "mean", "low", "high", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["score", "mean"], ascending=[False, False], ignore_index=True)
