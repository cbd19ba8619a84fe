"""Recordings: a few pictures under several changes as one batch, with what a reader wants to watch.

How each picture forms, where every cross-attention head looks at every step, and what it looks
like when heads are switched off, words hidden, or another relation written in. The explorer in
the book and its widgets both show recordings. Models may be on any device; recordings are on the
CPU.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..analyses.factors import token_vectors
from ..analyses.heads import head_conditions
from ..analyses.sweep import spread
from ..analyses.synopsis import RoleAttention
from ..analyses.weight_maps import qk_maps
from ..data.captions import ROLES, parse
from ..data.scenes import RELATIONS
from ..hooks.core import Heads, Hook
from ..hooks.edits import Ablate, AddResidual, MaskKeys
from ..hooks.run import run
from ..live.contents import Workbench
from ..model.pipeline import Model
from ..text.batch import TextBatch
from ..text.prepared import Prepared
from ..text.roles import role_table

SAID = ROLES[:5]                                   # the roles that a complete prompt holds
CHANGE_SITES = ("stream", "relation", "shape2")    # where another relation is written in


@dataclass(frozen=True)
class Change:
    """What is changed in a run. Raises ValueError for a role, site or relation that does not exist.

    off: heads (layer, head) under mean ablation.
    hidden: roles of tokens that no head sees.
    relation: index into RELATIONS of another relation that is written in; None for none.
    site: where it is written. "stream" adds what the relation heads write for it, minus what they
        write for the prompt's own, to the residual stream before the `layer` of the bench;
        "relation" and "shape2" change that token's embedding from the old relation to the new one.
    scale: how often the new relation is added; 1 is once.
    """
    off: Heads = ()
    hidden: Sequence[str] = ()
    relation: int | None = None
    site: str = "stream"
    scale: float = 1.0

    def __post_init__(self):
        for value, allowed in [*((r, SAID) for r in self.hidden), (self.site, CHANGE_SITES)]:
            if value not in allowed:
                raise ValueError(f"{value!r} is unknown; choose from {', '.join(allowed)}")
        if self.relation is not None and self.relation not in range(len(RELATIONS)):
            last = len(RELATIONS) - 1
            raise ValueError(f"relation {self.relation!r} is out of range; choose 0 to {last}")

    @property
    def needs(self) -> list[str]:
        """The roles that a prompt must hold for this change."""
        written = [self.site] if self.relation is not None and self.site in SAID else []
        return [*self.hidden, *written]

    def writes(self, where_tokens: bool) -> bool:
        """Whether it writes a relation into tokens (True) or into the residual stream (False)."""
        return self.relation is not None and (self.site != "stream") == where_tokens


@dataclass
class Recording:
    """P prompts under C conditions, the intact run first; tensors on the CPU."""
    prompts: list[str]
    conditions: list[str]
    tokens: list[list[str]]      # [P] the tokens of each prompt, without pads
    roles: list[list[str]]       # [P] their roles
    guesses: Tensor              # [P, C, steps, 4, 16, 16] the noise-free latents each step guesses
    latents: Tensor              # [P, C, 4, 16, 16]
    attention: Tensor            # [P, C, steps, L, H, R, 8, 8] fp16 to SAID roles, branch "cond"


def decoded(model: Model, latents: Tensor) -> Tensor:
    """Latents [..., 4, 16, 16] as pictures, uint8 [..., 3, 128, 128] on the CPU."""
    flat = latents.flatten(0, -4).to(model.vae.mean.device)
    return model.vae.decode(flat).cpu().unflatten(0, latents.shape[:-3])


def _cut_text(bench: Workbench, prompts: Sequence[str], changes: Sequence[Change]) -> TextBatch:
    """The null prompt, then every prompt under every change, its tokens changed accordingly."""
    text = bench.model.encoder.encode(["", *prompts])
    batch = text[[0, *(1 + i for i in range(len(prompts)) for _ in changes)]]
    batch.embeddings = batch.embeddings.clone()
    cases = [(p, c) for p in prompts for c in changes]
    for embeddings, roles, (prompt, change) in zip(batch.embeddings[1:], batch.roles[1:], cases):
        own = parse(prompt).relation
        if lacks := [role for role in change.needs if role not in roles]:
            raise ValueError(f"prompt {prompt!r} holds no {lacks[0]}")
        if change.relation is not None and own is None:
            raise ValueError(f"prompt {prompt!r} holds no relation")
        if change.writes(where_tokens=True):
            effects = bench.effects(change.site).to(embeddings)
            here = [i for i, role in enumerate(roles) if role == change.site]
            embeddings[here] += change.scale * effects[change.relation] - effects[own]
    return batch


def _added(bench: Workbench, prompts: Sequence[str], changes: Sequence[Change]) -> Tensor:
    """What the changes add to the residual stream of each sample [P * C, N, D]."""
    out = []
    for prompt in prompts:
        for change in changes:
            out.append(torch.zeros_like(bench.vectors[0]))
            if change.writes(where_tokens=False):
                own = bench.vectors[parse(prompt).relation]
                out[-1] = change.scale * (bench.vectors[change.relation] - own)
    return torch.stack(out)


@torch.no_grad()
def record(bench: Workbench, prompts: Sequence[str], changes: dict[str, Change],
           seeds: Sequence[int]) -> Recording:
    """Draw every prompt with its seed, intact and under every change, as one batch.

    Raises ValueError, before sampling, for unequal lengths, an unencodable prompt, a head that
    does not exist, or a prompt without the role or relation that a change needs.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
    every = [Change(), *changes.values()]
    names, off = head_conditions(bench.model, {name: c.off for name, c in changes.items()})
    batch = _cut_text(bench, prompts, every)
    hooks: list[Hook] = []
    if off.any():
        hooks.append(Ablate(spread(off, len(prompts)), bench.mean))
    hides = [c.hidden for _ in prompts for c in every]
    hidden = [[r in hide for r in row] for row, hide in zip(batch.roles[1:], hides)]
    if any(map(any, hidden)):
        hooks.append(MaskKeys(torch.tensor(hidden)))
    if any(c.writes(where_tokens=False) for c in every):
        hooks.append(AddResidual(_added(bench, prompts, every), bench.layer))
    reader = RoleAttention(role_table(batch.roles[1:]), role_table(batch.roles[:1]))
    keys = [f"{p} #{i}" for i, p in enumerate(p for p in prompts for _ in every)]
    model = replace(bench.model, encoder=Prepared(["", *keys], batch))
    guesses: list[Tensor] = []
    latents = run(model, keys, [s for s in seeds for _ in every], *hooks, reader, steps=bench.steps,
                  batch=len(keys), on_guess=lambda i, x: guesses.append(x.cpu()))
    seen = reader.values.cpu().unflatten(0, (2, -1))[1]       # [P * C, steps, L, H, N, all roles]
    seen = seen[..., :len(SAID)].transpose(-1, -2).unflatten(-1, (8, 8))
    said = range(1, len(batch.roles), len(every))             # the intact row of each prompt
    lengths = [sum(role != "pad" for role in batch.roles[i]) for i in said]
    shape = (len(prompts), len(every))
    return Recording(list(prompts), names,
                     [batch.tokens[i][:n] for i, n in zip(said, lengths)],
                     [batch.roles[i][:n] for i, n in zip(said, lengths)],
                     torch.stack(guesses, 1).unflatten(0, shape),
                     latents.cpu().unflatten(0, shape), seen.unflatten(0, shape))


def role_ramps(model: Model, prompts: Sequence[str]) -> Tensor:
    """[P, L, H, R, 8, 8]: every head's logits from the position embedding alone, on the CPU.

    They are for the prompts' own tokens of the SAID roles, minus their mean over the grid (see
    `weight_maps`); NaN for a role that a prompt does not hold.
    """
    blocks, roles = model.transformer.transformer_blocks, model.encoder.encode(list(prompts)).roles
    shape = (len(prompts), len(blocks), blocks[0].attn2.heads, len(SAID), 8, 8)
    out = torch.full(shape, torch.nan)
    for r, role in enumerate(SAID):
        holds = [i for i, row in enumerate(roles) if role in row]
        if holds:
            told = [prompts[i] for i in holds]
            vectors = token_vectors(model.encoder, told, role, model.transformer)
            maps = qk_maps(model.transformer, vectors.to(model.transformer.device)).cpu()
            maps = maps - maps.mean((-1, -2), keepdim=True)
            out[holds, :, :, r] = maps.permute(2, 0, 1, 3, 4)
    return out
