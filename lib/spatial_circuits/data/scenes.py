"""Scenes: two coloured shapes in a named spatial relation, drawn in batches from (seed, index).

A scene is a row of small integer tensors. Scene `index` of stream `seed` is the same for every
batch size, device and worker count, so the stream is infinite and resumable. Two presets:

clean  the 8 relations are equally likely; objects lie at least `GAP` px apart along each axis that
       the relation names and are aligned within `JITTER` px along the other; nothing overlaps.
paper  the authors' distribution: free positions, so 79 % of the relations are diagonal and 27 % of
       the images overlap.

A new relation goes into RELATIONS, OFFSETS, REVERSE and PHRASES_PER_RELATION, its words into
`captions`; a new preset into PRESETS and `sample_scenes`.
"""
from dataclasses import dataclass, fields, replace
from numbers import Integral

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "blue")
RELATIONS = ("above", "below", "left", "right",
             "upper_left", "upper_right", "lower_left", "lower_right")

# sign of (x1 - x2, y1 - y2) that the relation names, y pointing down; 0 = axis not named
OFFSETS = torch.tensor([(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)])
REVERSE = torch.tensor([1, 0, 3, 2, 7, 6, 5, 4])  # the relation of (2, 1) where (1, 2) has this
UPPER_FIRST = torch.tensor([0, 2, 4, 5])  # relations whose object 1 is the upper or, if level, left
PHRASES_PER_RELATION = torch.tensor([3, 3, 2, 2, 3, 3, 3, 3])  # in the order of captions.PHRASES
FIRST_PHRASE = PHRASES_PER_RELATION.cumsum(0) - PHRASES_PER_RELATION  # of each relation
SIZE, RADIUS, ALIGN = 128, 16, 5  # px; ALIGN is the authors' inclusive threshold for "aligned"
GRID = 8  # image tokens a side, each of SIZE / GRID px
GAP, JITTER = 36, 2               # px; preset clean
LOW, HIGH = RADIUS + 1, SIZE - RADIUS - 1  # a centre's range, inclusive, as the authors'
PRESETS = ("clean", "paper")
SEED_LIMIT = 2 ** 62  # seeds lie below, so that what is added to them stays in 64 bits
_MIX = (-4658895280553007687, -7723592293110705685)  # splitmix64's multipliers, signed


@dataclass
class Scenes:
    """A batch of B scenes. Object 0 is mentioned first, object 1 second; y points down; xy is the
    shape's centroid."""
    shape: Tensor     # [B, 2] index into SHAPES, the two differ
    color: Tensor     # [B, 2] index into COLORS, the two differ
    xy: Tensor        # [B, 2, 2] (object, axis) in px
    relation: Tensor  # [B] index into RELATIONS
    phrase: Tensor    # [B] index into captions.PHRASES
    named: Tensor     # [B, 2] bool: is the object's colour word spoken?

    def __len__(self) -> int:
        return len(self.relation)

    def __getitem__(self, rows: "int | slice | Tensor") -> "Scenes":
        if isinstance(rows, int):
            row = range(len(self))[rows]  # IndexError past the end, which also ends a for loop
            rows = slice(row, row + 1)
        return Scenes(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: "str | torch.device") -> "Scenes":
        return Scenes(*(getattr(self, f.name).to(device) for f in fields(self)))

    def replace(self, **changes: Tensor) -> "Scenes":
        return replace(self, **changes)


def check_seed(seed: int, limit: int = SEED_LIMIT) -> None:
    """Raise ValueError unless `seed` is a whole number between -limit and limit."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -limit < seed < limit:
        raise ValueError(f"seed {seed!r} must be a whole number between -{limit} and {limit}")


def swapped(scenes: Scenes, where: Tensor) -> Scenes:
    """The same pictures told the other way round in rows `where` [B] bool: "A above B" becomes
    "B below A".

    The phrase keeps its place among its relation's phrases. Only for scenes without overlap, whose
    picture has no order.
    """
    first = FIRST_PHRASE.to(where.device)
    reverse = REVERSE.to(where.device)[scenes.relation]
    phrase = scenes.phrase - first[scenes.relation] + first[reverse]

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (old.ndim - 1)), new, old)

    shape, color, xy, named = (pick(old.flip(1), old)
                               for old in (scenes.shape, scenes.color, scenes.xy, scenes.named))
    return Scenes(shape, color, xy, pick(reverse, scenes.relation), pick(phrase, scenes.phrase),
                  named)


def uniform(seed: int, index: Tensor, draws: int) -> Tensor:
    """Counter-based uniforms in [0, 1): [B] index -> [B, draws], a pure function of (seed, index,
    draw), by splitmix64. Raises ValueError for a seed that is no whole number of 63 bits."""
    check_seed(seed, 2 ** 63)
    def mix(z: Tensor) -> Tensor:  # wraps around in int64; masks make the right shifts logical
        z = (z ^ (z >> 30 & (1 << 34) - 1)) * _MIX[0]
        z = (z ^ (z >> 27 & (1 << 37) - 1)) * _MIX[1]
        return z ^ (z >> 31 & (1 << 33) - 1)
    stream = mix(torch.tensor(seed, dtype=torch.int64, device=index.device))
    row = mix(index.long() ^ stream)[:, None]                                          # [B, 1]
    step = torch.arange(1, draws + 1, device=index.device) * -7046029254386353131
    z = mix(row + step)                                                                # [B, draws]
    return (z >> 40 & (1 << 24) - 1).float() / (1 << 24)


def relation_of(xy: Tensor) -> Tensor:
    """[B, 2, 2] centroids -> [B] relation by the authors' rule: within ALIGN px inclusive an axis
    counts as aligned."""
    d = xy[:, 0] - xy[:, 1]    # [B, 2]
    sign = torch.where(d > 0, 1, -1) * (d.abs() > ALIGN)    # [B, 2]
    aligned = (sign == 0).all(1)    # both aligned: a tie reads as above or below
    sign[aligned, 1] = torch.where(d[aligned, 1] < 0, -1, 1)
    return (sign[:, None] == OFFSETS.to(xy.device)).all(2).float().argmax(1)


def sample_scenes(index: Tensor, seed: int = 0, preset: str = "clean", *,
                  relation: Tensor | None = None, shape: Tensor | None = None,
                  color: Tensor | None = None, phrase: Tensor | None = None,
                  named: Tensor | None = None) -> Scenes:
    """Scenes `index` [B] of stream `seed`. A given attribute replaces the drawn one (`phrase`
    implies its relation).

    Raises ValueError for an unknown preset or a seed that is no whole number of 62 bits. Source of
    `paper`: the authors' generator (data facts, section 1.1).
    """
    check_seed(seed)
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose from {', '.join(PRESETS)}")
    u = uniform(seed, index, 12)    # [B, 12]
    first_phrase = FIRST_PHRASE.to(index.device)
    if phrase is not None:
        relation = torch.searchsorted(first_phrase, phrase, right=True) - 1
    if shape is None:
        s1 = (u[:, 0] * 3).long()
        shape = torch.stack([s1, (s1 + 1 + (u[:, 1] * 2).long()) % 3], 1)    # [B, 2]
    if color is None:
        c1 = (u[:, 2] * 2).long()
        color = torch.stack([c1, 1 - c1], 1)    # [B, 2]
    named = u[:, 3:5] < 0.5 if named is None else named    # [B, 2]
    if preset == "clean":
        relation = (u[:, 5] * 8).long() if relation is None else relation
        xy = _clean_positions(relation, u[:, 6:10])
    else:
        xy = (LOW + u[:, 6:10] * (HIGH - LOW + 1)).long().view(-1, 2, 2)
        xy = xy if relation is None else _redraw(xy, relation, index, seed)
        relation = relation_of(xy)
    if phrase is None:
        count = PHRASES_PER_RELATION.to(index.device)[relation]
        phrase = first_phrase[relation] + (u[:, 10] * count).long()
    return Scenes(shape, color, xy, relation, phrase, named)


def _clean_positions(relation: Tensor, u: Tensor) -> Tensor:
    """[B] relation, [B, 4] uniforms -> [B, 2, 2] centroids: sorted pairs GAP apart, or aligned
    within JITTER."""
    sign = OFFSETS.to(u.device)[relation]    # [B, 2]
    pair = (u.view(-1, 2, 2) * (HIGH - LOW - GAP + 1)).long().sort(2)[0]  # [B, axis, low, high]
    pair = LOW + pair + torch.tensor([0, GAP], device=u.device)
    apart = torch.where(sign[..., None] < 0, pair, pair.flip(2))    # object 0 on the named side
    u = u.view(-1, 2, 2)    # [B, axis, draw]: axes share no draw
    middle = LOW + JITTER + (u[..., 0] * (HIGH - LOW - 2 * JITTER + 1)).long()
    shift = (u[..., 1] * (2 * JITTER + 1)).long() - JITTER
    aligned = torch.stack([middle, middle + shift], 2)    # [B, axis, object]
    return torch.where(sign[..., None] == 0, aligned, apart).transpose(1, 2)


def _redraw(xy: Tensor, relation: Tensor, index: Tensor, seed: int) -> Tensor:
    """Redraw free positions [B, 2, 2] until each shows the wanted relation [B]: rejection, a fresh
    stream per round."""
    for round_ in range(1, 1000):
        wrong = (relation_of(xy) != relation).nonzero()[:, 0]
        if not len(wrong):
            return xy
        fresh = uniform(seed + round_ * 1_000_003, index[wrong], 4)
        xy[wrong] = (LOW + fresh * (HIGH - LOW + 1)).long().view(-1, 2, 2)
    raise RuntimeError("no position found for a relation in 1,000 rounds")
