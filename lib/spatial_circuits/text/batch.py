"""What every text encoder returns, and the protocol that all of them follow."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

NORM = 7.5     # per-token norm of the authors' RTE table, matched to T5


MAX_TOKENS = 20


@dataclass
class TextBatch:
    """What an encoder returns for B prompts, padded to T tokens; tensors are on the CPU."""
    embeddings: Tensor        # [B, T, D] float32, zero at pads
    mask: Tensor              # [B, T] bool, True where the token is attended (the end token is)
    tokens: list[list[str]]   # [B][T]
    roles: list[list[str]]    # [B][T], each of captions.ROLES

    def __getitem__(self, rows: Sequence[int]) -> "TextBatch":
        return TextBatch(self.embeddings[list(rows)], self.mask[list(rows)],
                         [self.tokens[i] for i in rows], [self.roles[i] for i in rows])


class Encoder(Protocol):
    """Anything with these two can condition a model.

    `encode([""])` is the null prompt of training and sampling. Frozen encoders also have
    `tensors() -> dict[str, Tensor]`: their weights or tables, by which a saved model knows them.
    """
    dim: int

    def encode(self, prompts: list[str]) -> TextBatch: ...
