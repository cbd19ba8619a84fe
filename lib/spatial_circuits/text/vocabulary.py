"""Vocabulary: the words of word-level encoders, their vectors, and the captions that set a scale.

A word added to `data.captions` moves no other word's vector, and so no trained model: the words
that were there first have their rows in one table, drawn at once, and each further word has a
vector of its own, drawn from its letters.
"""
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.captions import WORDS

# Frozen: these lists stay as they are, whatever words are added to the captions.
FIRST_PHRASES = (
    "above", "directly above", "higher than", "below", "directly below", "lower than",
    "to the left of", "left of", "to the right of", "right of",
    "to the upper left of", "above and to the left of", "diagonally up and left from",
    "to the upper right of", "above and to the right of", "diagonally up and right from",
    "to the lower left of", "below and to the left of", "diagonally down and left from",
    "to the lower right of", "below and to the right of", "diagonally down and right from")
_SHAPES, _COLORS = ("circle", "square", "triangle"), ("red", "blue")
FIRST_WORDS = tuple(sorted({*" ".join(FIRST_PHRASES).split(), *_SHAPES, *_COLORS, "is", "the"}))


def present_words() -> tuple[str, ...]:
    """The first words in their order, then those that the captions know by now."""
    return (*FIRST_WORDS, *(w for w in WORDS if w not in FIRST_WORDS))


def check_words(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The words as they are; `present_words` for none.

    Raises ValueError for what is no word in lower case, or stands there twice.
    """
    for i, word in enumerate(vocabulary):
        if not isinstance(word, str) or word.lower().split() != [word] or word in vocabulary[:i]:
            raise ValueError(f"vocabulary holds {word!r}; it takes words in lower case, each once")
    return tuple(vocabulary) or present_words()


def rows_of(tokens: Sequence[str], special: int, first: Tensor, seed: int) -> Tensor:
    """[V, D] rows of `tokens`, of which `special` come before the words.

    `first` [special + F, D] holds the rows of the special tokens and of FIRST_WORDS; each further
    word's is standard normal, drawn from the seed and the word alone.
    """
    place = {w: special + i for i, w in enumerate(FIRST_WORDS)}
    rows = list(first[:special])
    for word in tokens[special:]:
        if word in place:
            rows.append(first[place[word]])
        else:
            letters = int.from_bytes(hashlib.sha256(f"{seed} {word}".encode()).digest()[:7], "big")
            generator = torch.Generator().manual_seed(letters)
            rows.append(torch.randn(first.shape[1], generator=generator))
    return torch.stack(rows)


def first_captions() -> list[str]:
    """The 1,056 captions of FIRST_PHRASES; contextual encoders are standardised over them."""
    said = [f"{one} is {{}} {two}" for a in range(3) for b in (1, 2) for c in range(2)
            for one in (_SHAPES[a], f"{_COLORS[c]} {_SHAPES[a]}")
            for two in (_SHAPES[(a + b) % 3], f"{_COLORS[1 - c]} {_SHAPES[(a + b) % 3]}")]
    return [s.format(p) for p in FIRST_PHRASES for s in said]
