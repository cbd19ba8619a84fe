"""Words: which characters of a prompt each token covers, and which tokens make up a word.

By the tokens' own letters, so that it holds for every tokenizer, also for those that tell no
offsets.
"""
import re
from collections.abc import Sequence

from .batch import Encoder

_MARKS = re.compile("^##|[▁Ġ]|</w>$")   # of a word's start, end or continuation


def token_spans(prompt: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Characters [start, end) of each token, found one after the other; empty for a token that is
    not in the text (special tokens, pads, unknown words)."""
    text, place, spans = prompt.lower(), 0, []
    for token in tokens:
        piece = _MARKS.sub("", token).lower()
        start = text.find(piece, place) if piece else -1
        if start < 0:
            spans.append((place, place))
            continue
        place = start + len(piece)
        spans.append((start, place))
    return spans


def word_tokens(encoder: Encoder, prompt: str, word: str) -> list[int]:
    """Numbers of the tokens that a word, or several in a row, has in a prompt, wherever it stands.

    Raises ValueError, naming the prompt's words, for a word that is not in it.
    """
    batch = encoder.encode([prompt])
    spans = token_spans(prompt, batch.tokens[0])
    places = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.I)]
    found = [i for i, (a, b) in enumerate(spans) if batch.mask[0, i]
             and any(max(a, start) < min(b, end) for start, end in places)]
    if not word.strip() or not found:
        raise ValueError(f"word {word!r} has no token in {prompt!r}; "
                         f"choose from {', '.join(prompt.split())}")
    return found
