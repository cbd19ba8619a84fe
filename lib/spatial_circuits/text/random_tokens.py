"""Random token embeddings (paper: RTE): a frozen table, optionally with a position code."""
import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.captions import parse
from ..data.scenes import RELATIONS
from .batch import MAX_TOKENS, NORM, TextBatch
from .roles import align
from .vocabulary import FIRST_WORDS, check_words, rows_of


class RandomTokenEncoder:
    """Frozen random token embeddings (paper: RTE), plus a sinusoidal position code of equal norm.

    The paper's position code is the default: base 10,000, added as it is, and so almost constant
    over the positions that captions use. `base` sets the longest wavelength; `center` removes the
    mean over positions before the norm is set, which makes word order a stronger signal. A word's
    vector depends on `dim`, `seed` and the word; `vocabulary` only says what words are known (none:
    those of the captions). Raises ValueError for values out of range.
    """
    drawn = True

    def __init__(self, dim: int = 128, position: bool = True, base: float = 10_000.0,
                 center: bool = False, seed: int = 42, max_tokens: int = MAX_TOKENS,
                 vocabulary: Sequence[str] = ()):
        if dim < 2 or dim % 2:
            raise ValueError(f"dim is {dim}; it must be an even number of at least 2")
        if not base > 0:
            raise ValueError(f"base is {base}; it must be above 0")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
        self.dim, self.max_tokens, self.words = dim, max_tokens, check_words(vocabulary)
        self.vocabulary = ("<pad>", "</s>", *self.words)
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(2 + len(FIRST_WORDS), dim, generator=generator)
        table = rows_of(self.vocabulary, 2, first, seed)
        self.table = table / table.norm(dim=1, keepdim=True) * NORM                     # [V, D]
        self.position = torch.zeros(max_tokens, dim)                                    # [T, D]
        if position:
            self.position = sinusoid(max_tokens, dim, base, center)

    def tensors(self) -> dict[str, Tensor]:
        """What the embeddings are sums of."""
        return {"table": self.table, "position": self.position}

    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for an unknown word (names the nearest) or too long a prompt."""
        words = [[(m[0].lower(), m.span()) for m in re.finditer(r"\S+", p)] for p in prompts]
        for prompt, row in zip(prompts, words):
            self._check(prompt, [w for w, _ in row])
        length = max(len(row) for row in words) + 1
        ids = torch.zeros(len(prompts), length, dtype=torch.long)                       # [B, T]
        for i, row in enumerate(words):
            ids[i, :len(row) + 1] = torch.tensor([self.vocabulary.index(w) for w, _ in row] + [1])
        mask = ids > 0
        embeddings = (self.table[ids] + self.position[:length]) * mask[..., None]       # [B, T, D]
        roles = [align(p, [span for _, span in row], length) for p, row in zip(prompts, words)]
        tokens = [[self.vocabulary[t] for t in row] for row in ids.tolist()]
        return TextBatch(embeddings, mask, tokens, roles)

    def _check(self, prompt: str, words: list[str]) -> None:
        for word in words:
            if word not in self.words:
                near = difflib.get_close_matches(word, self.words, 3, 0.0)
                raise ValueError(f"unknown word {word!r} in prompt {prompt!r}; nearest known: "
                                 f"{', '.join(near)}; known: {' '.join(self.words)}")
        if len(words) >= self.max_tokens:
            raise ValueError(f"prompt {prompt!r} has {len(words)} words; "
                             f"at most {self.max_tokens - 1} fit")


class FusedTokenEncoder(RandomTokenEncoder):
    """Random token embeddings in which the second shape's token carries a share of the relation.

    e' = (e + dose r) |e| / |e + dose r|, with e that token's embedding and r a random vector of the
    prompt's relation, of norm NORM: a dial from a table of words (dose 0) towards what a contextual
    encoder does. Raises ValueError for a negative dose.
    """

    def __init__(self, dose: float = 0.5, dim: int = 128, seed: int = 42,
                 max_tokens: int = MAX_TOKENS, vocabulary: Sequence[str] = ()):
        super().__init__(dim=dim, seed=seed, max_tokens=max_tokens, vocabulary=vocabulary)
        if not dose >= 0:
            raise ValueError(f"dose is {dose}; it must be at least 0")
        self.dose = dose
        generator = torch.Generator().manual_seed(1000 + seed)
        vectors = torch.randn(len(RELATIONS), self.dim, generator=generator)
        self.relation = vectors / vectors.norm(dim=1, keepdim=True) * NORM              # [8, D]

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "relation": self.dose * self.relation}

    def encode(self, prompts: list[str]) -> TextBatch:
        batch = super().encode(prompts)
        for i, prompt in enumerate(prompts):
            relation = parse(prompt).relation
            if relation is None or not self.dose:    # dose 0: the table, to the bit
                continue
            for t in (t for t, role in enumerate(batch.roles[i]) if role == "shape2"):
                old = batch.embeddings[i, t]
                new = old + self.dose * self.relation[relation]
                batch.embeddings[i, t] = new * old.norm() / new.norm()
        return batch


def sinusoid(length: int, dim: int, base: float = 10_000.0, center: bool = False) -> Tensor:
    """Position code [length, dim]: sin on even, cos on odd channels, rows of a mean norm of NORM.

    `center` first subtracts the mean over the first 12 positions, those that captions fill.
    """
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    code = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)                    # [length, dim]
    if center:
        code = code - code[:12].mean(0)
    return code * NORM / code[:12].norm(dim=1).mean()
