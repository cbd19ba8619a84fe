"""Roles: which tokens of a prompt name which part of the scene; the one place that looks for them.

An encoder gives roles as strings, one a token (`TextBatch.roles`, each of `captions.ROLES`). From
them: `role_mask` and `mask_of_role` (a role's tokens as a mask), `role_table` (all roles, as zeros
and ones), `token_of_role` and `occurrences` (as indices), `of_role` (as mean embeddings).
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.captions import ROLES, parse
from .batch import Encoder, TextBatch

Roles = Sequence[Sequence[str]]   # [B][T]


def align(prompt: str, spans: Sequence[tuple[int, int]], length: int) -> list[str]:
    """Roles of one prompt's tokens from their characters, then one end token, then pads."""
    parsed = parse(prompt)
    roles = [parsed.role(*span) for span in spans]
    return roles + ["end"] + ["pad"] * (length - len(roles) - 1)


def mask_of_role(roles: Roles, role: str) -> Tensor:
    """[B, T] True at the tokens of that role, or of several ("colour1+colour2"); none is allowed.

    Raises ValueError for an unknown role.
    """
    parts = role.split("+")
    if unknown := [r for r in parts if r not in ROLES]:
        raise ValueError(f"role {unknown[0]!r} is unknown; choose from {', '.join(ROLES)}")
    return torch.tensor([[r in parts for r in row] for row in roles], dtype=torch.bool)


def role_mask(encoder: Encoder, prompts: Sequence[str], role: str) -> Tensor:
    """`mask_of_role` [P, T] of prompts that all hold the role.

    Raises ValueError naming the first prompt without any of its tokens, or an unknown role.
    """
    mask = mask_of_role(encoder.encode(list(prompts)).roles, role)
    missing = (~mask.any(1)).nonzero().flatten().tolist()
    if missing and role != "pad":
        raise ValueError(f"prompt {prompts[missing[0]]!r} holds no token of role {role}")
    return mask


def role_table(roles: Roles) -> Tensor:
    """[B, T, R] float: one where a token has the role, R in the order of `captions.ROLES`."""
    return torch.stack([mask_of_role(roles, role) for role in ROLES], 2).float()


def _held(batch: TextBatch, role: str) -> Tensor:
    """`mask_of_role` of a batch. Raises ValueError, with the tokens, for a prompt without it."""
    mask = mask_of_role(batch.roles, role)
    for i in (~mask.any(1)).nonzero().flatten().tolist():
        raise ValueError(f"no token has the role {role!r} in {' '.join(batch.tokens[i])!r}; "
                         f"its roles: {', '.join(dict.fromkeys(batch.roles[i]))}")
    return mask


def of_role(batch: TextBatch, role: str) -> Tensor:
    """Each prompt's embedding of a role [B, D], the mean where it has several tokens.

    Raises ValueError, with the tokens, for a prompt without that role.
    """
    weight = _held(batch, role).to(batch.embeddings)                                    # [B, T]
    weight = weight / weight.sum(1, keepdim=True)
    return (weight[..., None] * batch.embeddings).sum(1)


def token_of_role(batch: TextBatch, role: str) -> Tensor:
    """[B] index of the role's first token in each prompt, counted from 0.

    Raises ValueError, with the tokens, for a prompt without that role.
    """
    return _held(batch, role).int().argmax(1)


def occurrences(batch: TextBatch, role: str) -> tuple[Tensor, Tensor]:
    """[k] prompts and [k] token indices of all k tokens of a role, prompt by prompt."""
    rows, tokens = mask_of_role(batch.roles, role).nonzero(as_tuple=True)
    return rows, tokens
