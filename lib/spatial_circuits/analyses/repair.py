"""Repair: make a model read other wordings without retraining it, by changing what it is given.

What training showed is known from prompts of the training wording T0: for each role r of a token
the mean m_r, the directions U_r in which its embeddings vary, and the effects of what the prompt
says. A reworded prompt's content tokens e are then changed:

hide       e as it is; filler tokens that T0 does not hold are hidden from the model
drop       the encoding of the sentence without those words: what the plainest rewriting does
project    m_r + U_r U_r' (e - m_r): what T0 never varied is dropped; needs the role alone
relation   e - R_r R_r' s_r: of the wording's mean shift s_r, the part along the relation effects
           R_r (after claim C15)
shift      e - s_r: the whole mean shift of the wording
restore    m_r + the effects of the relation and of both objects said: the token from its factors

Shifts and statistics come from other prompts than those that are scored.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from ..data.captions import parse
from ..model.pipeline import Model
from ..text.batch import Encoder, TextBatch
from ..text.prepared import Prepared, joined
from ..text.roles import occurrences
from ..text.wordings import reworded
from .factors import TOKEN_FACTORS, labels, partition, relation_effects
from .sweep import sweep

CONTENT = ("colour1", "shape1", "relation", "colour2", "shape2")
METHODS = ("hide", "drop", "project", "relation", "shift", "restore")


KEPT = 0.99  # share of a role's variance over T0 that its directions U_r keep


@dataclass
class Wording:
    """What the training wording looks like: by role the mean [D], the varying directions [k, D],
    the relation effects' directions [7, D]; by (role, number, what is said) the rebuilt token [D];
    and the filler words."""
    mean: dict[str, Tensor] = field(default_factory=dict)
    basis: dict[str, Tensor] = field(default_factory=dict)
    span: dict[str, Tensor] = field(default_factory=dict)
    rebuilt: dict[tuple, Tensor] = field(default_factory=dict)
    fillers: set[str] = field(default_factory=set)


def _numbered(text: TextBatch, role: str) -> list[tuple[int, int]]:
    """(row, number) of each token of the role: its prompt, and which of its role's tokens it is."""
    rows = occurrences(text, role)[0].tolist()
    return [(row, rows[:k].count(row)) for k, row in enumerate(rows)]


def _factors_of(role: str) -> str:
    """The role of `factors.TOKEN_FACTORS` whose factors explain this role's token."""
    if role in TOKEN_FACTORS:
        return role
    return "shape2" if role.endswith("2") else "shape1"


def _key(prompt: str, role: str, number: int, levels: dict[str, str]) -> tuple:
    """What decides how a token is rebuilt: of a relation its phrase, else its factors' levels."""
    said = (parse(prompt).phrase,) if role == "relation" else tuple(levels.values())
    return (role, number, *said)


def _along(x: Tensor, directions: Tensor) -> Tensor:
    """The part of x [..., D] along orthonormal directions [k, D]."""
    return x @ directions.T @ directions


def _centred_svd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors of x [n, D] less its mean."""
    return torch.linalg.svd(x - x.mean(0), full_matrices=False)[1:]


def _filler_words(text: TextBatch) -> set[str]:
    return {token for tokens, roles in zip(text.tokens, text.roles)
            for token, role in zip(tokens, roles) if role == "filler"}


def learn(encoder: Encoder, prompts: Sequence[str]) -> Wording:
    """The statistics of these prompts, as they are worded.

    Raises ValueError for a prompt without both objects or a relation, or if a relation is left out.
    """
    text = encoder.encode(list(prompts))
    out = Wording(fillers=_filler_words(text))
    for role in CONTENT:
        row, at = occurrences(text, role)
        x, numbered = text.embeddings[row, at], _numbered(text, role)                       # [k, D]
        factors = labels([prompts[i] for i in row], _factors_of(role))
        found = partition(x, factors, n_perm=0)
        effects = relation_effects(found)
        out.mean[role], out.span[role] = x.mean(0), _centred_svd(effects)[1][:len(effects) - 1]
        s, v = _centred_svd(x)
        out.basis[role] = v[:1 + int((s.square().cumsum(0) / s.square().sum() < KEPT).sum())]
        levels = [dict(zip(factors, values)) for values in zip(*factors.values())]
        keys = [_key(prompts[i], role, n, said) for (i, n), said in zip(numbered, levels)]
        for key, said in dict(zip(keys, levels)).items():
            if role == "relation":                      # its words differ: each has its own mean
                out.rebuilt[key] = x[torch.tensor([other == key for other in keys])].mean(0)
            else:
                effects_said = [found.effects[f][level] for f, level in said.items()]
                out.rebuilt[key] = found.mean + sum(effects_said)
    return out


def dropped(prompt: str, like: Sequence[str]) -> str:
    """The prompt without words that carry no role and stand in none of the prompts `like`; the
    words are joined by one space."""
    def with_role(p: str) -> list[tuple[str, bool]]:
        spans = parse(p).spans
        return [(m[0], any(s < m.end() and e > m.start() for s, e, _ in spans))
                for m in re.finditer(r"\S+", p)]

    known = {w.lower() for p in like for w, role in with_role(p) if not role}
    return " ".join(w for w, role in with_role(prompt) if role or w.lower() in known)


def mean_shifts(encoder: Encoder, prompts: Sequence[str], family: str) -> dict[str, Tensor]:
    """By role, the mean shift [D] that a wording causes; of roles that it leaves standing."""
    text, count = encoder.encode([*prompts, *reworded(prompts, family)]), len(prompts)
    out = {}
    for role in CONTENT:
        row, at = occurrences(text, role)
        x = text.embeddings[row, at]
        if (row >= count).any():
            out[role] = x[row >= count].mean(0) - x[row < count].mean(0)
    return out


def repaired(text: TextBatch, said: Sequence[str], method: str, wording: Wording,
             moved: dict[str, Tensor]) -> TextBatch:
    """A copy of a batch with one method but `drop` applied; `said` are the prompts behind it.

    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"repair {method!r} is unknown; choose from {', '.join(METHODS)}")
    new, mask = text.embeddings.clone(), text.mask.clone()
    if method in ("hide", "restore"):
        strange = _filler_words(text) - wording.fillers
        mask &= ~torch.tensor([[t in strange and r == "filler" for t, r in zip(*rows)]
                               for rows in zip(text.tokens, text.roles)]).to(mask.device)
    for role in CONTENT:
        row, at = occurrences(text, role)
        if not len(row):
            continue
        e, m = new[row, at], wording.mean[role]
        s = moved.get(role, torch.zeros_like(m))
        if method == "project":
            e = m + _along(e - m, wording.basis[role])
        elif method == "relation":
            e = e - _along(s, wording.span[role])
        elif method == "shift":
            e = e - s
        elif method == "restore":
            e = torch.stack([_rebuilt(wording, said[i], role, number, old)
                             for (i, number), old in zip(_numbered(text, role), e)])
        new[row, at] = e
    return TextBatch(new, mask, text.tokens, text.roles)


def _rebuilt(wording: Wording, prompt: str, role: str, number: int, old: Tensor) -> Tensor:
    """A token from its factors; as it is where the prompt does not say all of them."""
    try:
        levels = {name: x[0] for name, x in labels([prompt], _factors_of(role)).items()}
    except ValueError:
        return old
    return wording.rebuilt.get(_key(prompt, role, number, levels), old)


def repair(model: Model, prompts: Sequence[str], family: str, calibration: Sequence[str],
           methods: Sequence[str] = METHODS, per_prompt: int = 1, seed: int = 1,
           **options) -> pd.DataFrame:
    """Scores of a wording as it is and repaired, beside T0 as it is and repaired alike (the cost).

    `metrics.score`'s frame plus condition and seed; conditions "T0", "reworded", and each method on
    both ("T0 + hide", "hide"). Raises ValueError for an unknown family or method, and for prompts
    that also calibrate.
    """
    if shared := set(prompts) & set(calibration):
        raise ValueError(f"prompt {sorted(shared)[0]!r} is both scored and used for calibration")
    wording = learn(model.encoder, calibration)
    moved = mean_shifts(model.encoder, calibration, family)
    count, said = len(prompts), [*prompts, *reworded(prompts, family)]
    without = [dropped(p, calibration[:1]) for p in said]
    text = model.encoder.encode(["", *said, *without])
    plain = text[list(range(1, 1 + 2 * count))]
    parts, names = [plain], ["T0", "reworded"]
    for method in methods:
        if method == "drop":
            changed = text[list(range(1 + 2 * count, 1 + 4 * count))]
        else:
            changed = repaired(plain, said, method, wording, moved)
        if method in ("relation", "shift"):              # T0 is not shifted: nothing is taken away
            changed.embeddings[:count] = plain.embeddings[:count]
        parts.append(changed)
        names += [f"T0 + {method}", method]
    told = [[f"{p} #{name}" for name in names] for p in prompts]
    keys = [row[k] for k in range(len(names)) for row in told]
    encoder = Prepared(["", *keys], joined(text[[0]], *parts))
    return sweep(replace(model, encoder=encoder), told, names, (), per_prompt, seed, scored=prompts,
                 **options)
