"""Perturb: the same scene said in other words, to see what a model's reading hangs on (paper: templates T0 to T4).

Each family turns a parsed prompt into another wording. A picture is scored against the original prompt, so a
family may use any words; whether an encoder knows them is asked before sampling (`supported`).
"""
from collections.abc import Callable, Sequence

import pandas as pd

from .ablation import sweep
from .captions import PHRASES, parse
from .scenes import COLORS, SHAPES
from .text import Encoder

_SYNONYM = {"red": "crimson", "blue": "navy"}


def _said(prompt: str) -> tuple[str, str, str, str, str]:
    """(colour 1, shape 1, phrase, colour 2, shape 2). Raises ValueError if the prompt leaves one out."""
    found = parse(prompt)
    if None in (*found.shape, *found.color) or found.phrase is None:
        raise ValueError(f"prompt {prompt!r} does not say both shapes, both colours and a relation")
    (s1, s2), (c1, c2) = ([SHAPES[s] for s in found.shape], [COLORS[c] for c in found.color])
    return c1, s1, PHRASES[found.phrase], c2, s2


FAMILIES: dict[str, Callable[[str, str, str, str, str], str]] = {
    "T0": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}",
    "T1 no is": lambda c1, s1, r, c2, s2: f"{c1} {s1} {r} {c2} {s2}",
    "T2 no is, the": lambda c1, s1, r, c2, s2: f"{c1} {s1} {r} the {c2} {s2}",
    "T3 the": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} the {c2} {s2}",
    "T4 the, the": lambda c1, s1, r, c2, s2: f"the {c1} {s1} is {r} the {c2} {s2}",
    "no is, the, the": lambda c1, s1, r, c2, s2: f"the {c1} {s1} {r} the {c2} {s2}",
    "I1 inverted": lambda c1, s1, r, c2, s2: f"{r} {c2} {s2} is {c1} {s1}",
    "I2 inverted, the": lambda c1, s1, r, c2, s2: f"{r} {c2} {s2} is the {c1} {s1}",
    "I3 inverted, the": lambda c1, s1, r, c2, s2: f"{r} the {c2} {s2} is {c1} {s1}",
    "synonyms": lambda c1, s1, r, c2, s2: f"{_SYNONYM[c1]} {s1} is {r} {_SYNONYM[c2]} {s2}",
    "capitals": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}".upper(),
    "full stop": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}.",
    "double space": lambda c1, s1, r, c2, s2: f"{c1} {s1}  is {r}  {c2} {s2}",
    "lead-in": lambda c1, s1, r, c2, s2: f"in the picture {c1} {s1} is {r} {c2} {s2}",
    "typo": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2[:2]}{s2[3]}{s2[2]}{s2[4:]}",
    "swapped clauses": lambda c1, s1, r, c2, s2: f"there is {c2} {s2} and {c1} {s1} is {r} it",
}


def reworded(prompts: Sequence[str], family: str) -> list[str]:
    """The prompts in the words of a family. Raises ValueError for an unknown family or an incomplete prompt."""
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose from {', '.join(FAMILIES)}")
    return [FAMILIES[family](*_said(p)) for p in prompts]


def supported(encoder: Encoder, prompts: Sequence[str]) -> dict[str, str]:
    """Families that the encoder cannot read, with the reason; asked of these prompts."""
    out = {}
    for family in FAMILIES:
        try:
            encoder.encode(reworded(prompts, family))
        except ValueError as error:
            out[family] = str(error)
    return out


def robustness(model, prompts: Sequence[str], families: Sequence[str] | None = None, per_prompt: int = 1, seed: int = 1,
               **options) -> pd.DataFrame:
    """Scores of every family against the original prompts: `metrics.score`'s frame plus condition (the family) and seed.

    All families by default, but for those the encoder cannot read. T0 comes first, as the reference of `ablation.effects`.
    """
    known = [f for f in families or FAMILIES if f not in supported(model.encoder, prompts)]
    told = [list(words) for words in zip(*(reworded(prompts, f) for f in known))]
    return sweep(model, told, known, (), per_prompt, seed, scored=prompts, **options)
