"""Counterparts: a prompt with one factor changed, word for word of the same length."""
from collections.abc import Sequence

from ..data.captions import PHRASE_RELATION, PHRASES, parse
from ..data.scenes import COLORS, SHAPES

PROMPT_FACTORS = ("relation", "shape", "colour")
_OPPOSITE = {"above": "below", "up": "down", "upper": "lower", "higher": "lower", "left": "right"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items() if a not in ("upper", "higher")}


def opposite(phrase: str) -> str:
    """The training phrase of the opposite relation, of equal length.

    Raises ValueError for an unknown phrase.
    """
    if phrase not in PHRASES:
        raise ValueError(f"phrase {phrase!r} is unknown; choose from {', '.join(PHRASES)}")
    lower = "higher" if phrase == "lower than" else "upper"
    return " ".join(lower if w == "lower" else _OPPOSITE.get(w, w) for w in phrase.split())


def counterpart(prompt: str, factor: str) -> str:
    """The prompt with one factor changed, word for word of the same length.

    relation: the opposite phrase. shape: object 1 becomes the shape that neither object has.
    colour: the two colours change places. Raises ValueError for an unknown factor, or a prompt
    that does not say it.
    """
    if factor not in PROMPT_FACTORS:
        raise ValueError(f"factor {factor!r} is unknown; choose from {', '.join(PROMPT_FACTORS)}")
    said, wanted = parse(prompt), {}
    if factor == "relation" and said.phrase is not None:
        wanted = {"relation": opposite(PHRASES[said.phrase])}
    if factor == "shape" and None not in said.shape:
        wanted = {"shape1": next(s for i, s in enumerate(SHAPES) if i not in said.shape)}
    if factor == "colour" and None not in said.color:
        wanted = {f"colour{i}": COLORS[1 - c] for i, c in enumerate(said.color, 1) if c is not None}
    if not wanted:
        raise ValueError(f"prompt {prompt!r} does not say its {factor}")
    for start, end, role in reversed(said.spans):  # from the end, so that earlier spans stay true
        if role in wanted:
            prompt = prompt[:start] + wanted[role] + prompt[end:]
    return prompt


def colourless(prompts: Sequence[str]) -> list[str]:
    """The prompts without their colours: scored so, a picture is right if its shapes are."""
    return [" ".join(w for w in p.split() if w not in COLORS) for p in prompts]


def relations_said(prompts: Sequence[str]) -> list[int]:
    """The number of each prompt's relation. Raises ValueError naming the first that says none."""
    found = []
    for prompt in prompts:
        relation = parse(prompt).relation
        if relation is None:
            raise ValueError(f"prompt {prompt!r} says no relation")
        found.append(relation)
    return found


def restated(prompt: str, relation: int) -> str:
    """The prompt with its relation phrase replaced by the first phrase of another relation.

    Raises ValueError for a prompt without a relation.
    """
    relations_said([prompt])
    start, end = next((s, e) for s, e, role in parse(prompt).spans if role == "relation")
    return prompt[:start] + PHRASES[PHRASE_RELATION.index(relation)] + prompt[end:]
