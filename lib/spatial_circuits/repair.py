"""Repair: make a model read other wordings without retraining it, by changing the embeddings that it is given.

What training showed is known from prompts of the training wording T0: for each role r of a token the mean m_r, the directions U_r
in which its embeddings vary, and the effects of what the prompt says. A reworded prompt's content tokens e are then changed:

hide       e as it is; filler tokens that T0 does not hold are hidden from the model
drop       the encoding of the sentence without those words: what the plainest rewriting does
project    m_r + U_r U_r' (e - m_r): what T0 never varied is dropped. Needs the role alone, not the wording
relation   e - R_r R_r' s_r: of the wording's mean shift s_r, the part along the relation effects R_r (after claim C15)
shift      e - s_r: the whole mean shift of the wording
restore    m_r + the effects of the relation and of both objects said: the token rebuilt from its factors

Shifts and statistics come from other prompts than those that are scored.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from .ablation import sweep
from .arithmetic import Prepared
from .captions import parse
from .factors import labels, partition, relation_effects
from .perturb import reworded
from .text import Encoder, TextBatch

CONTENT = ("colour1", "shape1", "relation", "colour2", "shape2")
METHODS = ("hide", "drop", "project", "relation", "shift", "restore")
KEPT = 0.99  # share of a role's variance over T0 that its directions U_r keep


def occurrences(text: TextBatch, role: str) -> tuple[Tensor, Tensor]:
    """[k] rows and [k] positions of the tokens of a role."""
    found = [(i, j) for i, row in enumerate(text.roles) for j, r in enumerate(row) if r == role]
    return tuple(torch.tensor(x, dtype=torch.long) for x in (zip(*found) if found else ((), ())))


def index_in_role(text: TextBatch, role: str) -> list[int]:
    """Of each token of the role, its number among those of its prompt: 0, 1, ..."""
    return [k for row in text.roles for k in range(sum(r == role for r in row))]


@dataclass
class Wording:
    """What the training wording looks like: by role the mean [D], the varying directions [k, D], the relation effects' directions
    [7, D]; by (role, number, what is said) the rebuilt token [D]; and the filler words."""
    mean: dict[str, Tensor]
    basis: dict[str, Tensor]
    span: dict[str, Tensor]
    rebuilt: dict[tuple, Tensor]
    fillers: set[str]


def _said(prompt: str, role: str, part: dict[str, list[str]], i: int) -> tuple:
    return (parse(prompt).phrase,) if role == "relation" else tuple(levels[i] for levels in part.values())


def learn(encoder: Encoder, prompts: Sequence[str]) -> Wording:
    """The statistics of these prompts, as they are worded. Raises ValueError for one without both objects or a relation."""
    text = encoder.encode(list(prompts))
    out = Wording({}, {}, {}, {}, {t for row, roles in zip(text.tokens, text.roles) for t, r in zip(row, roles) if r == "filler"})
    for role in CONTENT:
        row, place = occurrences(text, role)
        x = text.embeddings[row, place]                                                       # [k, D]
        out.mean[role] = x.mean(0)
        _, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        out.basis[role] = v[:1 + int((s.square().cumsum(0) / s.square().sum() < KEPT).sum())]
        factors = labels([prompts[i] for i in row], "shape2" if role.endswith("2") else "relation" if role == "relation" else "shape1")
        found = partition(x, factors, n_perm=0)
        effects = relation_effects(found)
        out.span[role] = torch.linalg.svd(effects - effects.mean(0), full_matrices=False)[2][:len(effects) - 1]
        for k, (i, number) in enumerate(zip(row.tolist(), index_in_role(text, role))):
            key = (role, number, *_said(prompts[i], role, factors, k))
            out.rebuilt.setdefault(key, found.mean + sum(found.effects[f][levels[k]] for f, levels in factors.items()))
        if role == "relation":                                                                # its words differ: each has its own mean
            keys = [(role, n, parse(prompts[i]).phrase) for i, n in zip(row.tolist(), index_in_role(text, role))]
            for key in set(keys):
                out.rebuilt[key] = x[torch.tensor([other == key for other in keys])].mean(0)
    return out


def dropped(prompt: str, like: Sequence[str]) -> str:
    """The prompt without words that carry no role and stand in none of the prompts `like`; the words are joined by one space."""
    def fillers(p: str) -> list[tuple[str, bool]]:
        spans = parse(p).spans
        return [(m[0], any(s < m.end() and e > m.start() for s, e, _ in spans)) for m in re.finditer(r"\S+", p)]
    known = {w.lower() for p in like for w, role in fillers(p) if not role}
    return " ".join(w for w, role in fillers(prompt) if role or w.lower() in known)


def mean_shifts(encoder: Encoder, prompts: Sequence[str], family: str) -> dict[str, Tensor]:
    """By role, the mean shift [D] that a wording causes; of roles that it leaves standing."""
    text, count = encoder.encode([*prompts, *reworded(prompts, family)]), len(prompts)
    out = {}
    for role in CONTENT:
        row, place = occurrences(text, role)
        x = text.embeddings[row, place]
        if (row >= count).any():
            out[role] = x[row >= count].mean(0) - x[row < count].mean(0)
    return out


def repaired(text: TextBatch, said: Sequence[str], method: str, wording: Wording, moved: dict[str, Tensor]) -> TextBatch:
    """A copy of a batch with one method but `drop` applied; `said` are the prompts behind it. Raises ValueError for an unknown method."""
    if method not in METHODS:
        raise ValueError(f"repair {method!r} is unknown; choose from {', '.join(METHODS)}")
    new, mask = text.embeddings.clone(), text.mask.clone()
    strange = torch.tensor([[r == "filler" and t not in wording.fillers for t, r in zip(*rows)] for rows in zip(text.tokens, text.roles)])
    if method in ("hide", "restore"):
        mask &= ~strange
    for role in CONTENT:
        row, place = occurrences(text, role)
        if not len(row):
            continue
        e, m = new[row, place], wording.mean[role]
        if method == "project":
            new[row, place] = m + (e - m) @ wording.basis[role].T @ wording.basis[role]
        if method in ("relation", "shift"):
            s = moved.get(role, torch.zeros_like(m))
            new[row, place] = e - (wording.span[role].T @ (wording.span[role] @ s) if method == "relation" else s)
        if method == "restore":
            new[row, place] = torch.stack([_rebuilt(wording, said[i], role, n, e[k]) for k, (i, n) in
                                           enumerate(zip(row.tolist(), index_in_role(text, role)))])
    return TextBatch(new, mask, text.tokens, text.roles)


def _rebuilt(wording: Wording, prompt: str, role: str, number: int, old: Tensor) -> Tensor:
    """A token from its factors; as it is where the prompt does not say all of them."""
    try:
        part = labels([prompt], "shape2" if role.endswith("2") else "shape1")
    except ValueError:
        return old
    return wording.rebuilt.get((role, number, *_said(prompt, role, part, 0)), old)


def repair(model, prompts: Sequence[str], family: str, calibration: Sequence[str], methods: Sequence[str] = METHODS, per_prompt: int = 1,
           seed: int = 1, **options) -> pd.DataFrame:
    """Scores of a wording as it is and repaired, beside T0 as it is and repaired in the same way (the cost).

    `metrics.score`'s frame plus condition and seed; conditions "T0", "reworded", and each method on both ("T0 + hide", "hide"). Raises ValueError
    for an unknown family or method, and for prompts that also calibrate.
    """
    if shared := set(prompts) & set(calibration):
        raise ValueError(f"prompt {sorted(shared)[0]!r} is both scored and used for calibration")
    wording, moved = learn(model.encoder, calibration), mean_shifts(model.encoder, calibration, family)
    count, said = len(prompts), [*prompts, *reworded(prompts, family)]
    text = model.encoder.encode(["", *said, *(dropped(p, calibration[:1]) for p in said)])
    null, plain, without = text[[0]], text[list(range(1, 1 + 2 * count))], text[list(range(1 + 2 * count, 1 + 4 * count))]
    parts = [plain]
    for method in methods:
        changed = without if method == "drop" else repaired(plain, said, method, wording, moved)
        if method in ("relation", "shift"):                                                   # T0 is not shifted, so nothing is taken away
            changed.embeddings[:count] = plain.embeddings[:count]
        parts.append(changed)
    names = [x for m in ("", *methods) for x in ((f"T0 + {m}", m) if m else ("T0", "reworded"))]
    keys = [[f"{p} #{n}" for n in names] for p in prompts]
    order = [[k * 2 * count + h * count + i for k in range(len(parts)) for h in (0, 1)] for i in range(count)]
    pool = TextBatch(torch.cat([null.embeddings, *(p.embeddings for p in parts)]), torch.cat([null.mask, *(p.mask for p in parts)]),
                     null.tokens + sum((p.tokens for p in parts), []), null.roles + sum((p.roles for p in parts), []))
    flat = [1 + j for row in order for j in row]
    encoder = Prepared(["", *(k for row in keys for k in row)], pool[[0, *flat]])
    return sweep(replace(model, encoder=encoder), keys, names, (), per_prompt, seed, scored=prompts, **options)
