"""Captions: the 22 phrases, the caption of a scene, and the parse of a prompt into roles.

"[colour] shape is PHRASE [colour] shape", each colour word spoken or not. `parse` reads the
training template and its perturbations: articles, capitals, a full stop, a missing "is", the
inverted order "PHRASE object 2 is object 1", and clauses, "there is object 2 and object 1 is PHRASE
it". A new phrase goes into `_PHRASES`, a new relation also into `scenes` (see there).
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .scenes import COLORS, RELATIONS, SHAPES, Scenes

_PHRASES = {
    "above": ("above", "directly above", "higher than"),
    "below": ("below", "directly below", "lower than"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    **{f"{v}_{h}": (f"to the {v} {h} of", f"{c} and to the {h} of", f"diagonally {d} and {h} from")
       for v, c, d in (("upper", "above", "up"), ("lower", "below", "down"))
       for h in ("left", "right")},
}

PHRASES = tuple(p for r in RELATIONS for p in _PHRASES[r])
PHRASE_RELATION = tuple(i for i, r in enumerate(RELATIONS) for _ in _PHRASES[r])
ROLES = ("colour1", "shape1", "relation", "colour2", "shape2", "filler", "end", "pad")  # of tokens
WORDS = tuple(sorted({w for p in PHRASES for w in p.split()} | {*SHAPES, *COLORS, "is", "the"}))
SYNONYMS = {"crimson": "red", "navy": "blue"}  # scored as the canonical colour
_LONGEST_FIRST = sorted(PHRASES, key=len, reverse=True)
_PHRASE = re.compile("|".join(r"\b" + p.replace(" ", r"\s+") + r"\b" for p in _LONGEST_FIRST),
                     re.I | re.A)

_OBJECT = re.compile(r"\b(" + "|".join((*SHAPES, *COLORS, *SYNONYMS)) + r")\b",
                     re.I | re.A)  # ASCII: "ı" is no "i"

_IT = re.compile(r"\s+it\b(\s+(there\s+)?is\b)?", re.I | re.A)  # the pronoun after a phrase


@dataclass
class Parsed:
    """What a prompt says: indices into SHAPES, COLORS and RELATIONS, None where unsaid."""
    shape: list[int | None] = field(default_factory=lambda: [None, None])
    color: list[int | None] = field(default_factory=lambda: [None, None])
    relation: int | None = None
    phrase: int | None = None
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    # spans: (start, end, role) of characters, in the order of the text

    def role(self, start: int, end: int) -> str:
        """Role of the characters [start, end): that of the first span they touch, else filler."""
        return next((r for s, e, r in self.spans if start < e and end > s), "filler")


def caption(shape: Sequence[int], color: Sequence[int | None], phrase: int) -> str:
    """The training caption of two objects, e.g. "red square is above circle"; a colour of None is
    not spoken. `shape` and `color` hold two indices into SHAPES and COLORS each."""
    one, two = (SHAPES[s] if c is None else f"{COLORS[c]} {SHAPES[s]}"
                for s, c in zip(shape, color))
    return f"{one} is {PHRASES[phrase]} {two}"


def captions(scenes: Scenes) -> list[str]:
    """One caption a scene, B strings."""
    rows = zip(scenes.shape.tolist(), scenes.color.tolist(), scenes.named.tolist(),
               scenes.phrase.tolist())
    return [caption(shape, [c if spoken else None for c, spoken in zip(color, named)], phrase)
            for shape, color, named, phrase in rows]


CAPTION_COUNT = len(PHRASES) * 6 * 8  # rows of `all_captions`


def caption_index(scenes: Scenes) -> Tensor:
    """[B] row of each scene's caption in `all_captions()`: few captions, each encoded once."""
    pair = scenes.shape[:, 0] * 2 + (scenes.shape[:, 1] - scenes.shape[:, 0]) % 3 - 1     # 0..5
    objects = (scenes.phrase * 6 + pair) * 2 + scenes.color[:, 0]
    return objects * 4 + scenes.named[:, 0] * 2 + scenes.named[:, 1] * 1


def all_captions() -> list[str]:
    """Every caption in the order of `caption_index`: phrase, pair of shapes, order of colours,
    colour words spoken (1,056)."""
    return [caption((a, (a + b) % 3), (c if n1 else None, 1 - c if n2 else None), p)
            for p in range(len(PHRASES)) for a in range(3) for b in (1, 2) for c in range(2)
            for n1 in (False, True) for n2 in (False, True)]


def parse(prompt: str) -> Parsed:
    """Find relation, shapes and colours in a prompt. Never raises: what is not there stays None.

    Object 1 is the one the phrase speaks of, object 2 the one it is compared with; words of further
    objects have no role. Without a phrase they are the first two.
    """
    out = Parsed()
    found = _PHRASE.search(prompt)
    if found:
        out.phrase = PHRASES.index(" ".join(found[0].lower().split()))
        out.relation = PHRASE_RELATION[out.phrase]
        out.spans.append((*found.span(), "relation"))
    start, end = found.span() if found else (len(prompt), len(prompt))
    before = _objects([m for m in _OBJECT.finditer(prompt) if m.end() <= start])
    after = _objects([m for m in _OBJECT.finditer(prompt) if m.start() >= end])
    pronoun = _IT.match(prompt, end) if found else None
    for which, words in enumerate(_ordered(before, after, bool(found), pronoun)):
        for m in words:
            word = SYNONYMS.get(m[0].lower(), m[0].lower())
            if word in SHAPES:
                out.shape[which] = SHAPES.index(word)
            else:
                out.color[which] = COLORS.index(word)
            role = "shape" if word in SHAPES else "colour"
            out.spans.append((*m.span(), f"{role}{which + 1}"))
    out.spans.sort()
    return out


class Said(NamedTuple):
    """What a whole prompt says: indices of both shapes, both colours, relation and phrase."""
    shape: list[int]
    color: list[int]
    relation: int
    phrase: int


def parse_whole(prompt: str) -> Said:
    """`parse`, of a prompt that says both shapes, both colours and a relation; else ValueError."""
    found = parse(prompt)
    shape, color = ([i for i in part if i is not None] for part in (found.shape, found.color))
    if found.phrase is None or found.relation is None or len(shape + color) < 4:
        raise ValueError(f"prompt {prompt!r} does not say both shapes, both colours and a relation")
    return Said(shape, color, found.relation, found.phrase)


def _objects(words: list[re.Match]) -> list[list[re.Match]]:
    """The words of each object: a colour, a shape or both. The last colour may follow its shape."""
    out: list[list[re.Match]] = []
    kinds: list[str] = []                   # of each object's words: c, s, cs
    for m in words:
        if m[0].lower() in SHAPES and kinds and kinds[-1] == "c":
            out[-1].append(m)
            kinds[-1] = "cs"
        else:
            out.append([m])
            kinds.append("s" if m[0].lower() in SHAPES else "c")
    if kinds[-2:] == ["s", "c"]:            # "square, red"
        out[-2:] = [out[-2] + out[-1]]
    return out


def _ordered(before: list, after: list, phrase: bool, pronoun: re.Match | None) -> list[list]:
    """Object 1 and object 2 of the objects before and after the phrase."""
    if not phrase:
        return before[:2]
    if not before:                          # "above blue circle is red square"
        return [*after[1:2], after[0]] if len(after) > 1 else [[], *after]
    if pronoun and pronoun[1] and after:    # "there is blue circle and above it is red square"
        return [after[0], before[-1]]
    if len(before) > 1 and (pronoun or not after):
        return [before[-1], before[-2]]     # "there is blue circle and red square is above it"
    return [before[-1], *after[:1]]
