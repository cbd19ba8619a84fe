"""Parser: what a prompt says of two things: any two noun phrases and a relation between them.

"a red chair on the left of a dog" says ("red chair", "dog") and "left". Known are the 22 phrases
of `data.captions` and those of T2I-CompBench's spatial prompts; captions of the training template,
inverted ones and clauses included, are read by `captions.parse`. In tokens' roles the noun is the
"shape" and the words before it are the "colour". A new phrase goes into RELATION_WORDS, and into
OPPOSED what says the contrary, if that takes more than an exchange of single words.
"""
import re
from dataclasses import dataclass

from ..data.captions import PHRASE_RELATION, PHRASES, Parsed, parse
from ..data.scenes import COLORS, OFFSETS, RELATIONS, SHAPES
from .counterparts import opposite

RELATION_WORDS = {
    "above": ("over", "on top of", "on the top of", "at the top of"),
    "below": ("under", "underneath", "beneath", "on the bottom of", "at the bottom of"),
    "left": ("on the left of", "on the left side of", "to the left side of"),
    "right": ("on the right of", "on the right side of", "to the right side of"),
    "near": ("near", "next to", "beside", "close to", "on side of", "on the side of",
             "by the side of"),
    "front": ("in front of",), "behind": ("behind", "hidden by"),
}
OPPOSED = {"on top of": "underneath", "underneath": "on top of", "over": "under", "under": "over",
           "beneath": "over", "in front of": "behind", "behind": "in front of",
           "hidden by": "in front of"}
_EXCHANGED = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_RELATION = {phrase: relation for relation, phrases in RELATION_WORDS.items() for phrase in phrases}
_RELATION |= {phrase: RELATIONS[i] for phrase, i in zip(PHRASES, PHRASE_RELATION)}
_ANY = re.compile(r"\b(?:" + "|".join(p.replace(" ", r"\s+") for p in sorted(
    _RELATION, key=len, reverse=True)) + r")\b", re.I | re.A)
_VERBS = re.compile("is|are|was|were|stands?|sits?|lies?|rests?|hangs?|standing|sitting|lying|"
                    "resting|hanging|placed|located|positioned|seen")
_ENDS = re.compile("a|an|the|this|that|its|his|her|it|there|which|of|and|with|in|on|at|to|from|by|"
                   "for|as|while|" + _VERBS.pattern)
_WORD = re.compile(r"[^\W_][\w'-]*|[^\w\s]")


@dataclass
class Spatial:
    """What a prompt says: two noun phrases, the relation of the first to the second, and the
    characters (start, end, role) of each part in the order of the text."""
    nouns: tuple[str, str]
    relation: str
    spans: list[tuple[int, int, str]]

    @property
    def side(self) -> tuple[int, int] | None:
        """Sign of (x1 - x2, y1 - y2), y down, 0 for an axis not named; None for a relation that
        names no side (near, front, behind)."""
        if self.relation not in RELATIONS:
            return None
        x, y = OFFSETS[RELATIONS.index(self.relation)].tolist()
        return x, y


def read_spatial(prompt: str) -> Spatial:
    """What a prompt says. Raises ValueError naming a prompt without two things and a relation."""
    found, said = _any_nouns(prompt), parse(prompt)
    shapes = [SHAPES[i] for i in said.shape if i is not None]
    ours = found is None or all(noun.split()[-1] in SHAPES for noun in found.nouns)
    if ours and len(shapes) == 2 and said.relation is not None:
        colors = ["" if i is None else f"{COLORS[i]} " for i in said.color]
        nouns = colors[0] + shapes[0], colors[1] + shapes[1]
        return Spatial(nouns, RELATIONS[said.relation], said.spans)
    if found is None:
        known = ", ".join([*RELATIONS, "near", "front", "behind"])
        raise ValueError(f"prompt {prompt!r} does not say two things and a relation between them, "
                         f"as 'a cup on the left of a dog' does; relations: {known}")
    return found


def opposed(prompt: str) -> str:
    """The prompt with the opposite relation, all else left. Raises ValueError for a prompt that
    says none, or one without an opposite."""
    said = read_spatial(prompt)
    start, end = next((s, e) for s, e, role in said.spans if role == "relation")
    phrase = " ".join(prompt[start:end].lower().split())
    if phrase in PHRASES:
        wanted = opposite(phrase)
    else:
        wanted = OPPOSED.get(phrase) or " ".join(_EXCHANGED.get(w, w) for w in phrase.split())
    if wanted == phrase:
        raise ValueError(f"{phrase!r} in {prompt!r} has no opposite; choose among "
                         f"{', '.join([*RELATIONS, 'front', 'behind'])}")
    return prompt[:start] + wanted + prompt[end:]


def spoken(prompt: str) -> Parsed:
    """The spans of a prompt, for the roles of its tokens; none where it cannot be read."""
    try:
        return Parsed(spans=read_spatial(prompt).spans)
    except ValueError:
        return parse(prompt)


def _any_nouns(prompt: str) -> Spatial | None:
    relation = _ANY.search(prompt)
    if relation is None:
        return None
    before = list(_WORD.finditer(prompt, 0, relation.start()))
    while before and _VERBS.fullmatch(before[-1][0].lower()):
        before.pop()
    one = _run(before[::-1])[::-1]
    after = list(_WORD.finditer(prompt, relation.end()))
    while after and after[0][0].lower() in ("a", "an", "the"):
        after.pop(0)
    two = _run(after)
    if not one or not two:
        return None
    spans = [(*relation.span(), "relation")]
    for number, words in enumerate((one, two), 1):
        spans += [(*m.span(), f"colour{number}") for m in words[:-1]]
        spans.append((*words[-1].span(), f"shape{number}"))
    first, second = (" ".join(m[0].lower() for m in words) for words in (one, two))
    phrase = " ".join(relation[0].lower().split())
    return Spatial((first, second), _RELATION[phrase], sorted(spans))


def _run(words: list[re.Match]) -> list[re.Match]:
    """The words up to the first that ends a noun phrase."""
    out: list[re.Match] = []
    for word in words:
        if _ENDS.fullmatch(word[0].lower()) or not word[0][0].isalnum():
            break
        out.append(word)
    return out
