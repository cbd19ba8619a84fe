"""Recordings: a few pictures under several changes as one batch, with what a reader wants to watch.

How each picture forms, where every cross-attention head looks at every step, and what it looks like when heads are switched
off, words hidden, or another relation written in. The explorer in the book and its widgets both show recordings.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .ablation import INTACT, conditions, mean_outputs, spread
from .arithmetic import Prepared
from .captions import ROLES, parse
from .edits import Ablate, AddStream, MaskKeys
from .factors import labels, partition, relation_effects, token_vectors
from .hooks import Heads, run
from .injection import relation_vectors
from .metrics import prompt_set
from .sample import STEPS
from .scenes import RELATIONS
from .synopsis import RoleAttention, role_table
from .weights import qk_maps

SAID = ROLES[:5]                              # the roles that a complete prompt holds
SITES = ("stream", "relation", "shape2")      # the position embedding, or the token whose embedding is changed
EARLY = slice(0, 3)                           # the steps whose relation vectors are written in: layout is set early


@dataclass(frozen=True)
class Change:
    """What is changed in a run: heads off (mean ablation), roles hidden from all heads, another relation written in."""
    off: Heads = ()
    hidden: Sequence[str] = ()
    relation: int | None = None               # index into RELATIONS
    site: str = "stream"
    scale: float = 1.0

    def __post_init__(self):
        for value, allowed in [*((r, SAID) for r in self.hidden), (self.site, SITES)]:
            if value not in allowed:
                raise ValueError(f"{value!r} is unknown; choose from {', '.join(allowed)}")
        if self.relation is not None and self.relation not in range(len(RELATIONS)):
            raise ValueError(f"relation {self.relation!r} is out of range; choose 0 to {len(RELATIONS) - 1}")


class Bench:
    """A model with what its changes need, made at first use and kept."""

    def __init__(self, model, relation_heads: Heads = (), prompts: Sequence[str] | None = None, steps: int = STEPS):
        self.model, self.relation_heads, self.prompts, self.steps = model, list(relation_heads), prompts or prompt_set("264"), steps
        self._effects: dict[str, Tensor] = {}

    @cached_property
    def mean(self) -> Tensor:
        """Mean outputs of all heads over prompts that hold every phrase, for mean ablation."""
        return mean_outputs(self.model, self.prompts[:22], steps=self.steps)

    @cached_property
    def vectors(self) -> Tensor:
        """[8, N, D]: what the relation heads write for each relation, early in the run (see `injection`)."""
        if not self.relation_heads:
            raise ValueError(f"no relation heads are known for the model {self.model.name}; write the relation into a token instead")
        return relation_vectors(self.model, self.prompts[:44], self.relation_heads, steps=self.steps)[:, EARLY].mean(1)

    def effects(self, role: str) -> Tensor:
        """[8, D]: the effect of each relation on the embedding of a role's token (see `factors`)."""
        if role not in self._effects:
            vectors = token_vectors(self.model.encoder, self.prompts, role)
            self._effects[role] = relation_effects(partition(vectors, labels(self.prompts, role), n_perm=0))
        return self._effects[role]


@dataclass
class Recording:
    """P prompts under C conditions, the intact run first."""
    prompts: list[str]
    conditions: list[str]
    tokens: list[list[str]]                   # [P] the tokens of each prompt, without pads
    roles: list[list[str]]
    guesses: Tensor                           # [P, C, steps, 4, 16, 16] the noise-free latents predicted at each step
    latents: Tensor                           # [P, C, 4, 16, 16]
    attention: Tensor                         # [P, C, steps, L, H, R, 8, 8] fp16, attention to SAID roles, conditional half


def _text(bench: Bench, prompts: Sequence[str], changes: Sequence[Change]):
    """The null prompt, then every prompt under every change, with the changes that concern tokens applied."""
    text = bench.model.encoder.encode(["", *prompts])
    batch = text[[0, *(1 + i for i in range(len(prompts)) for _ in changes)]]
    batch.embeddings = batch.embeddings.clone()
    for s, (prompt, change) in enumerate(((p, c) for p in prompts for c in changes), 1):
        lacks = [r for r in (*change.hidden, *([change.site] if change.relation is not None else [])) if r in SAID and r not in batch.roles[s]]
        if lacks or change.relation is not None and parse(prompt).relation is None:
            raise ValueError(f"prompt {prompt!r} holds no {lacks[0] if lacks else 'relation'}")
        if change.relation is not None and change.site != "stream":
            effects, here = bench.effects(change.site), torch.tensor([r == change.site for r in batch.roles[s]])
            batch.embeddings[s, here] += change.scale * effects[change.relation] - effects[parse(prompt).relation]
    return batch


@torch.no_grad()
def record(bench: Bench, prompts: Sequence[str], changes: dict[str, Change], seeds: Sequence[int]) -> Recording:
    """Draw every prompt with its seed, intact and under every change, as one batch.

    Raises ValueError, before sampling, for unequal lengths, an unencodable prompt, a head that does not exist, or a prompt
    without the role or relation that a change needs.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    every = [Change(), *changes.values()]
    names, where = conditions(bench.model, {n: c.off for n, c in changes.items()})
    batch, told = _text(bench, prompts, every), [p for p in prompts for _ in every]
    shape, hooks, guesses = (len(prompts), len(every)), [], []
    if where.any():
        hooks.append(Ablate(spread(where, len(prompts)), bench.mean))
    hidden = torch.tensor([[r in every[s % len(every)].hidden for r in row] for s, row in enumerate(batch.roles[1:])])
    if hidden.any():
        hooks.append(MaskKeys(hidden))
    if any(c.relation is not None and c.site == "stream" for c in every):
        added = [torch.zeros_like(bench.vectors[0]) if c.relation is None or c.site != "stream" else
                 c.scale * (bench.vectors[c.relation] - bench.vectors[parse(p).relation]) for p in prompts for c in every]
        hooks.append(AddStream(torch.stack(added)))
    keys = ["", *(f"{p} #{i}" for i, p in enumerate(told))]
    reader = RoleAttention(role_table(batch.roles[1:]), role_table(batch.roles[:1]))
    latents = run(replace(bench.model, encoder=Prepared(keys, batch)), keys[1:], [s for s in seeds for _ in every], *hooks, reader,
                  steps=bench.steps, batch=len(told), on_guess=lambda i, x: guesses.append(x))
    seen = reader.values.unflatten(0, (2, -1))[1, ..., :len(SAID)].transpose(-1, -2)          # [S, steps, L, H, R, N]
    rows = [[t for t, r in zip(batch.tokens[1 + i * len(every)], batch.roles[1 + i * len(every)]) if r != "pad"] for i in range(len(prompts))]
    roles = [[r for r in batch.roles[1 + i * len(every)] if r != "pad"] for i in range(len(prompts))]
    return Recording(list(prompts), names, rows, roles, torch.stack(guesses, 1).unflatten(0, shape).cpu(), latents.unflatten(0, shape).cpu(),
                     seen.unflatten(-1, (8, 8)).unflatten(0, shape).cpu())


def ramps(model, prompts: Sequence[str]) -> Tensor:
    """[P, L, H, R, 8, 8]: every head's logits for the prompts' own tokens of the SAID roles on the bare position embedding,
    minus their mean over the grid (see `weights`). Roles that a prompt does not hold are NaN."""
    out = []
    for role in SAID:
        holds = [i for i, row in enumerate(model.encoder.encode(list(prompts)).roles) if role in row]
        maps = qk_maps(model.transformer, token_vectors(model.encoder, [prompts[i] for i in holds], role, model.transformer)) if holds else None
        full = torch.full((len(prompts), *(maps.shape[:2] if holds else (1, 1)), 8, 8), torch.nan)
        if holds:
            full[holds] = (maps - maps.mean((-1, -2), keepdim=True)).permute(2, 0, 1, 3, 4).cpu()
        out.append(full)
    shape = torch.broadcast_shapes(*(x.shape for x in out))
    return torch.stack([x.expand(shape) for x in out], 3)
