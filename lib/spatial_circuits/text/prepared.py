"""Prepared: an encoder that returns given embeddings for given prompts."""
from collections.abc import Sequence

import torch

from .batch import TextBatch


class Prepared:
    """An encoder that knows a list of prepared embeddings by name, the null prompt "" among them.

    Raises ValueError unless there is one name, each only once, for each row of the batch.
    """

    def __init__(self, names: Sequence[str], text: TextBatch):
        self.rows = {name: i for i, name in enumerate(names)}
        if not len(self.rows) == len(names) == len(text.embeddings):
            raise ValueError(f"{len(names)} names ({len(self.rows)} different) for "
                             f"{len(text.embeddings)} embeddings; give each a name of its own")
        self.text, self.dim = text, text.embeddings.shape[-1]

    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for a name that was not prepared."""
        unknown = [p for p in prompts if p not in self.rows]
        if unknown:
            raise ValueError(f"{unknown[0]!r} was not prepared; {len(self.rows)} embeddings were")
        return self.text[[self.rows[p] for p in prompts]]


def joined(*batches: TextBatch) -> TextBatch:
    """The rows of several batches of equal length T, one after the other."""
    return TextBatch(torch.cat([b.embeddings for b in batches]),
                     torch.cat([b.mask for b in batches]),
                     [row for b in batches for row in b.tokens],
                     [row for b in batches for row in b.roles])
