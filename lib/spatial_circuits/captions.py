"""Captions: the 22 phrases, the caption of a scene, and the parse of a prompt into roles.

"[colour] shape is PHRASE [colour] shape", each colour word spoken or not. `parse` reads the training template and its
perturbations (articles, capitals, a full stop, a missing "is", the inverted order "PHRASE object 2 is object 1").
"""
import re
from dataclasses import dataclass, field

from .scenes import COLORS, RELATIONS, SHAPES, Scenes

_PHRASES = {
    "above": ("above", "directly above", "higher than"),
    "below": ("below", "directly below", "lower than"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    **{f"{v}_{h}": (f"to the {v} {h} of", f"{c} and to the {h} of", f"diagonally {d} and {h} from")
       for v, c, d in (("upper", "above", "up"), ("lower", "below", "down")) for h in ("left", "right")},
}
PHRASES = tuple(p for r in RELATIONS for p in _PHRASES[r])
PHRASE_RELATION = tuple(i for i, r in enumerate(RELATIONS) for _ in _PHRASES[r])
ROLES = ("colour1", "shape1", "relation", "colour2", "shape2", "filler", "end", "pad")
WORDS = tuple(sorted({w for p in PHRASES for w in p.split()} | {*SHAPES, *COLORS, "is", "the"}))
SYNONYMS = {"crimson": "red", "navy": "blue"}  # scored as the canonical colour
_LONGEST_FIRST = sorted(range(len(PHRASES)), key=lambda i: -len(PHRASES[i]))
_PHRASE = re.compile("|".join(r"\b" + PHRASES[i].replace(" ", r"\s+") + r"\b" for i in _LONGEST_FIRST), re.I | re.A)
_OBJECT = re.compile(r"\b(" + "|".join((*SHAPES, *COLORS, *SYNONYMS)) + r")\b", re.I | re.A)  # ASCII: "ı" is no "i"


@dataclass
class Parsed:
    """What a prompt says: indices into SHAPES, COLORS and RELATIONS (None where unsaid), and character spans by role."""
    shape: list = field(default_factory=lambda: [None, None])
    color: list = field(default_factory=lambda: [None, None])
    relation: int | None = None
    phrase: int | None = None
    spans: list[tuple[int, int, str]] = field(default_factory=list)  # (start, end, role), in order of the text

    def role(self, start: int, end: int) -> str:
        """Role of the characters [start, end): that of the first span they touch, else filler."""
        return next((r for s, e, r in self.spans if start < e and end > s), "filler")


def caption(shape: tuple[int, int], color: tuple[int | None, int | None], phrase: int) -> str:
    """The training caption of two objects, e.g. "red square is above circle"; a colour of None is not spoken."""
    one, two = (" ".join([COLORS[c]] * (c is not None) + [SHAPES[s]]) if c is not None else SHAPES[s]
                for s, c in zip(shape, color))
    return f"{one} is {PHRASES[phrase]} {two}"


def captions(scenes: Scenes) -> list[str]:
    """One caption a scene, B strings."""
    rows = zip(scenes.shape.tolist(), scenes.color.tolist(), scenes.named.tolist(), scenes.phrase.tolist())
    return [caption(s, [c if n else None for c, n in zip(color, named)], p) for s, color, named, p in rows]


CAPTION_COUNT = len(PHRASES) * 6 * 8  # rows of `all_captions`


def caption_index(scenes: Scenes):
    """[B] row of each scene's caption in `all_captions()`: captions are few, so that they are encoded once."""
    pair = scenes.shape[:, 0] * 2 + (scenes.shape[:, 1] - scenes.shape[:, 0]) % 3 - 1     # 0..5
    return ((scenes.phrase * 6 + pair) * 2 + scenes.color[:, 0]) * 4 + scenes.named[:, 0] * 2 + scenes.named[:, 1] * 1


def all_captions() -> list[str]:
    """Every caption in the order of `caption_index`: phrase, shape pair, colour order, colour words spoken (1,056)."""
    return [caption((a, (a + b) % 3), (c if n1 else None, 1 - c if n2 else None), p)
            for p in range(len(PHRASES)) for a in range(3) for b in (1, 2) for c in range(2)
            for n1 in (False, True) for n2 in (False, True)]


def parse(prompt: str) -> Parsed:
    """Find relation, shapes and colours in a prompt. Never raises: what is not there stays None.

    Object 1 is the one the phrase speaks of: the last object before the phrase, or, where the phrase comes first
    ("above blue circle is red square"), the second object named.
    """
    out = Parsed()
    phrase = _PHRASE.search(prompt)
    if phrase:
        said = " ".join(phrase[0].lower().split())
        out.phrase = PHRASES.index(said)
        out.relation = PHRASE_RELATION[out.phrase]
        out.spans.append((*phrase.span(), "relation"))
    words = [m for m in _OBJECT.finditer(prompt) if not phrase or m.end() <= phrase.start() or m.start() >= phrase.end()]
    shapes = [m for m in words if m[0].lower() in SHAPES]
    inverted = bool(phrase and words and words[0].start() > phrase.start())
    for m in words:
        before = sum(s.start() < m.start() for s in shapes)  # shapes already named: the object this word belongs to
        which = 1 - before if inverted else int(m.start() > phrase.start()) if phrase else before
        if which not in (0, 1) or which and out.shape[1] is not None:
            continue
        word = SYNONYMS.get(m[0].lower(), m[0].lower())
        attribute, names, role = (out.shape, SHAPES, "shape") if word in SHAPES else (out.color, COLORS, "colour")
        attribute[which] = names.index(word)
        out.spans.append((*m.span(), f"{role}{which + 1}"))
    out.spans.sort()
    return out
