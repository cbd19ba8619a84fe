"""Wordings: the same scene said in other words (paper: templates T0 to T4 and more)."""
from collections.abc import Sequence

from ..data.captions import PHRASES, parse_whole
from ..data.scenes import COLORS, SHAPES
from .batch import Encoder

SYNONYM_OF = {"red": "crimson", "blue": "navy"}
# A template's fields: colour, shape, relation phrase; in capitals the same in capitals; y a synonym
# of the colour, t the second shape with two letters exchanged.
FAMILIES = {
    "T0": "{c1} {s1} is {r} {c2} {s2}",
    "T1 no is": "{c1} {s1} {r} {c2} {s2}",
    "T2 no is, the": "{c1} {s1} {r} the {c2} {s2}",
    "T3 the": "{c1} {s1} is {r} the {c2} {s2}",
    "T4 the, the": "the {c1} {s1} is {r} the {c2} {s2}",
    "no is, the, the": "the {c1} {s1} {r} the {c2} {s2}",
    "I1 inverted": "{r} {c2} {s2} is {c1} {s1}",
    "I2 inverted, the": "{r} {c2} {s2} is the {c1} {s1}",
    "I3 inverted, the": "{r} the {c2} {s2} is {c1} {s1}",
    "synonyms": "{y1} {s1} is {r} {y2} {s2}",
    "capitals": "{C1} {S1} IS {R} {C2} {S2}",
    "full stop": "{c1} {s1} is {r} {c2} {s2}.",
    "double space": "{c1} {s1}  is {r}  {c2} {s2}",
    "lead-in": "in the picture {c1} {s1} is {r} {c2} {s2}",
    "typo": "{c1} {s1} is {r} {c2} {t2}",
    "swapped clauses": "there is {c2} {s2} and {c1} {s1} is {r} it",
}


def _fields(prompt: str) -> dict[str, str]:
    """What a template may name. Raises ValueError if the prompt leaves a part of it out."""
    found = parse_whole(prompt)
    (s1, s2), (c1, c2) = ([SHAPES[s] for s in found.shape], [COLORS[c] for c in found.color])
    said = {"c1": c1, "s1": s1, "r": PHRASES[found.phrase], "c2": c2, "s2": s2}
    typo = s2[:2] + s2[3] + s2[2] + s2[4:]
    capitals = {k.upper(): v.upper() for k, v in said.items()}
    return {**said, **capitals, "y1": SYNONYM_OF[c1], "y2": SYNONYM_OF[c2], "t2": typo}


def reworded(prompts: Sequence[str], family: str) -> list[str]:
    """The prompts in the words of a family.

    Raises ValueError for an unknown family or an incomplete prompt.
    """
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose from {', '.join(FAMILIES)}")
    return [FAMILIES[family].format(**_fields(p)) for p in prompts]


def supported(encoder: Encoder, prompts: Sequence[str]) -> dict[str, str]:
    """Families that the encoder cannot read, with the reason; asked of these prompts."""
    out = {}
    for family in FAMILIES:
        told = reworded(prompts, family)
        try:
            encoder.encode(told)
        except ValueError as error:
            out[family] = str(error)
    return out
