"""Subspaces: in how many dimensions a factor sits at one place of the model, found by gradient.

Distributed alignment search (Geiger et al. 2024, arXiv 2303.02536): in the counterpart's run, the
part of a vector that lies in a k-dimensional subspace is taken from the clean run; the subspace is
learned so that the prediction becomes the clean one. A *site* is the tokens of a role, as the
encoder gives them ("shape2"), or the query of one head ((1, 3): the tag that says to the object
head which object belongs to a place). Beside it stand a random subspace, the principal directions
of the mean differences, and the whole vector.

The counterpart differs in a factor: those of `text.counterparts`, of which "relation" turns the
side and leaves the axis, or AXIS, by which the axis turns.
"""
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from ..data.captions import PHRASE_RELATION, PHRASES, parse
from ..data.scenes import REVERSE
from ..hooks.attach import hooked
from ..hooks.core import Hook, Reader
from ..hooks.edits import Patch
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import predict
from ..text.batch import Encoder, TextBatch
from ..text.counterparts import counterpart, relations_said
from ..text.prepared import Prepared
from ..text.roles import occurrences
from .heads import Head, check_heads, head_masks
from .patching import _Query, clean_trace
from .sweep import spread, sweep
from .token_exchange import rephrased

Site = str | Head
AXIS = "axis"
CLEAN, COUNTERPART = "clean", "counterpart"


def turned(encoder: Encoder, prompts: Sequence[str]) -> dict[str, str]:
    """For each prompt that has one, its objects in a relation of another axis, said in as many
    tokens; if there are several, they take turns. Raises ValueError for a prompt without relation.
    """
    said = [f"red square is {phrase} blue circle" for phrase in PHRASES]
    tokens: dict[int | None, int] = {
        k: row.count("relation") for k, row in enumerate(encoder.encode(said).roles)}
    found = {}
    for i, (prompt, own) in enumerate(zip(prompts, relations_said(prompts))):
        spoken = tokens[parse(prompt).phrase]
        others = [PHRASES[k] for k, relation in enumerate(PHRASE_RELATION)
                  if relation not in (own, REVERSE[own]) and tokens[k] == spoken]
        if others:
            found[prompt] = rephrased(prompt, others[i % len(others)])
    return found


def _partners(encoder: Encoder, prompts: Sequence[str], factor: str) -> list[str]:
    """The prompts' counterparts in a factor, the axis among them."""
    if factor != AXIS:
        return [counterpart(p, factor) for p in prompts]
    found = turned(encoder, prompts)
    for prompt in prompts:
        if prompt not in found:
            raise ValueError(f"no relation of another axis is said in as many tokens as that of "
                             f"prompt {prompt!r}; leave it out")
    return [found[p] for p in prompts]


def _tokens_of(text: TextBatch, site: str, count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """(row, token) of a role in the first `count` texts, and in the rest, their counterparts."""
    row, token = occurrences(text, site)
    mine, theirs = row < count, row >= count
    if not torch.equal(row[mine], row[theirs] - count):
        raise ValueError(f"a prompt and its counterpart differ in their number of tokens of role "
                         f"{site}, or have none")
    return (row[mine], token[mine]), (row[theirs], token[theirs])


class _Pair:
    """The prompts and their counterparts in a factor, at the latents of the clean runs; predicts
    for either, and for the counterpart with a part of the site taken from the clean prompt."""

    def __init__(self, model: Model, prompts: Sequence[str], site: Site, factor: str, steps: int,
                 every: int, seed: int):
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        self.model, self.site, self.count = model, site, len(prompts)
        others = _partners(model.encoder, prompts, factor)
        text = model.encoder.encode([*prompts, *others])
        net = model.transformer
        self.device, self.dtype = next((p.device, p.dtype) for p in net.parameters())
        self.text = text.embeddings.to(self.device, self.dtype)                   # [2 P, T, D]
        self.mask = text.mask.to(self.device)
        if isinstance(site, str):
            self.clean, self.other = _tokens_of(text, site, self.count)
        else:
            check_heads(model, [site])
        self.trace = clean_trace(model, prompts, steps, seed)[::every]

    def run(self, i: int, basis: Tensor | None = None, *readers: Reader) -> Tensor:
        """Predictions [2, P, ...] at trace step i of the clean prompts and the counterparts, these
        with the site's part in `basis` [D, k] taken from the clean ones."""
        number, x, t = self.trace[i]
        latents = x.to(self.device, self.dtype).repeat(2, 1, 1, 1)
        text: Tensor = self.text
        hooks: list[Hook] = [*readers]
        if basis is not None and isinstance(self.site, str):
            gap = (text[self.clean] - text[self.other]) @ basis @ basis.T
            text = text.index_put(self.other, text[self.other] + gap)
        elif basis is not None:
            source = torch.arange(self.count).repeat(2)
            hooks.append(Patch(source, [self.site], "query", basis, branch="cond"))
        with hooked(self.model.transformer, *hooks) as session:
            session.at(number, ("cond",))
            out = predict(self.model.transformer, latents,
                          t.expand(len(latents)).to(self.device), text, self.mask)
        return out.float().unflatten(0, (2, self.count))

    def differences(self) -> Tensor:
        """[P, D]: the site in the clean run minus that in the counterpart's, mean over tokens; at a
        head's query over the image tokens of one half, as the other half has the opposite sign."""
        if isinstance(self.site, str):
            gap = (self.text[self.clean] - self.text[self.other]).float().cpu()
            sums = torch.zeros(self.count, gap.shape[-1]).index_add(0, self.clean[0], gap)
            return sums / torch.bincount(self.clean[0], minlength=self.count)[:, None]
        reader = _Query(self.site)
        with torch.no_grad():
            self.run(0, None, reader)
        clean, other = reader.query.split(self.count)                                # [P, N, d]
        gap = clean - other
        sign = torch.sign((gap * gap[:, :1]).sum(-1, keepdim=True))                  # [P, N, 1]
        return (gap * sign).mean(1)


def site_size(model: Model, site: Site) -> int:
    """Dimensions D of a site: those of a token, or of a head's query."""
    if isinstance(site, str):
        return model.encoder.dim
    attention = model.transformer.transformer_blocks[site[0]].attn2
    return attention.to_q.out_features // attention.heads


def learn_subspace(model: Model, prompts: Sequence[str], site: Site, rank: int,
                   factor: str = "relation", iterations: int = 80, rate: float = 0.2,
                   steps: int = STEPS, every: int = 4, seed: int = 1) -> Tensor:
    """An orthonormal basis [D, rank] whose part of the site, taken from the clean prompt, makes the
    counterpart's prediction most like the clean one; on the CPU, the same for the same seed.

    Each iteration is a step of Adam, at a falling rate, at one of the trace's steps in turn. Raises
    ValueError for a rank out of range, a site that prompts or model lack, or a prompt without
    counterpart.
    """
    pair, size = _Pair(model, prompts, site, factor, steps, every, seed), site_size(model, site)
    if not 1 <= rank <= size:
        raise ValueError(f"rank is {rank}; the site has 1 to {size} dimensions")
    free = random_subspace(size, rank, seed).to(pair.device).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=rate)
    with torch.no_grad():
        bounds = [pair.run(i) for i in range(len(pair.trace))]
    for k in range(iterations):
        i = k % len(pair.trace)
        optimizer.param_groups[0]["lr"] = rate * (1 - k / iterations)
        clean, other = bounds[i]
        with torch.enable_grad():
            patched = pair.run(i, torch.linalg.qr(free).Q.to(pair.dtype))[1]
            loss = (patched - clean).square().sum() / (other - clean).square().sum()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return torch.linalg.qr(free.detach()).Q.cpu()


def random_subspace(dim: int, rank: int, seed: int = 0) -> Tensor:
    """A random orthonormal basis [dim, rank]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q


def mean_difference_subspace(model: Model, prompts: Sequence[str], site: Site, rank: int,
                             factor: str = "relation", seed: int = 1) -> Tensor:
    """The first principal directions [D, rank] of the mean differences between clean prompt and
    counterpart, one mean for each relation."""
    gaps = _Pair(model, prompts, site, factor, STEPS, STEPS, seed).differences()
    said = torch.tensor(relations_said(prompts))
    means = torch.stack([gaps[said == r].mean(0) for r in said.unique()])
    return torch.linalg.svd(means, full_matrices=False).Vh[:rank].T.contiguous()


@torch.no_grad()
def subspace_effects(model: Model, prompts: Sequence[str], site: Site,
                     bases: Mapping[str, Tensor | None], factor: str = "relation",
                     steps: int = STEPS, every: int = 2, seed: int = 1) -> pd.DataFrame:
    """How much of the factor each subspace of the site brings, as `prediction_effects` of patching
    with denoising: 0 nothing, 1 all of it. Rows: prompts, columns: `bases` [D, k]; None is the
    whole vector.

    Raises ValueError for a basis of another dimension, and as `learn_subspace` does.
    """
    pair, size = _Pair(model, prompts, site, factor, steps, every, seed), site_size(model, site)
    whole = torch.eye(size)
    for name, basis in bases.items():
        if basis is not None and len(basis) != size:
            raise ValueError(f"basis {name!r} has {len(basis)} dimensions; the site has {size}")
    errors, gaps = torch.zeros(len(bases), pair.count), torch.zeros(pair.count)
    for i in range(len(pair.trace)):
        clean, other = pair.run(i)
        gaps += (other - clean).square().flatten(1).sum(1).cpu()
        for j, basis in enumerate(bases.values()):
            used = (whole if basis is None else basis).to(pair.device, pair.dtype)
            patched = pair.run(i, used)[1]
            errors[j] += (patched - clean).square().flatten(1).sum(1).cpu()
    return pd.DataFrame((1 - errors / gaps).T.numpy(), index=list(prompts), columns=list(bases))


def subspace_pictures(model: Model, prompts: Sequence[str], site: Site,
                      bases: Mapping[str, Tensor | None], factor: str = "relation", seed: int = 1,
                      **options) -> pd.DataFrame:
    """Pictures of the counterparts with each subspace's part of the site taken from the clean
    prompts, at every step: the frame of `sweep`, scored against the clean prompts, plus original
    (the clean prompt). Conditions: CLEAN, COUNTERPART, and `bases`, as in `subspace_effects`.

    Options as of `sampler.sample_latents`. Raises ValueError as `learn_subspace` does.
    """
    others, whole = _partners(model.encoder, prompts, factor), torch.eye(site_size(model, site))
    used = {name: whole if basis is None else basis for name, basis in bases.items()}
    if isinstance(site, str):
        drawn = replace(model, encoder=_mixed(model.encoder, prompts, others, site, used))
        names = [CLEAN, COUNTERPART, *used]
        texts = [[f"{name} {i}" for name in names] for i in range(len(prompts))]
        frame = sweep(drawn, texts, names, (), 1, seed, scored=prompts, **options)
    else:
        frame = _queried(model, prompts, others, site, used, seed, **options)
    original = [p for p in prompts for _ in range(len(frame) // len(prompts))]
    return frame.assign(original=original)


def _queried(model: Model, prompts: Sequence[str], others: Sequence[str], head: Head,
             bases: Mapping[str, Tensor], seed: int, **options) -> pd.DataFrame:
    """`subspace_pictures` at a head's query, which is taken from the clean run beside."""
    check_heads(model, [head])
    names = [CLEAN, COUNTERPART, *bases]
    texts = [[clean, *[other] * (len(names) - 1)] for clean, other in zip(prompts, others)]
    source = (torch.arange(len(prompts)) * len(names)).repeat_interleave(len(names))
    hooks = []
    for name, basis in bases.items():
        where = head_masks(model, [[head] if name == condition else () for condition in names])
        hooks.append(Patch(source, spread(where, len(prompts)), "query", basis, branch="cond"))
    return sweep(model, texts, names, hooks, 1, seed, scored=prompts, **options)


def _mixed(encoder: Encoder, prompts: Sequence[str], others: Sequence[str], site: str,
           bases: Mapping[str, Tensor]) -> Prepared:
    """An encoder of "CLEAN i", "COUNTERPART i" and, by the name of each basis, the counterpart with
    that part of its tokens of a role taken from the clean prompt."""
    count = len(prompts)
    text = encoder.encode([*prompts, *(1 + len(bases)) * list(others), ""])
    clean, other = _tokens_of(text[list(range(2 * count))], site, count)
    embeddings = text.embeddings.clone()
    gap = embeddings[clean] - embeddings[other]
    for k, basis in enumerate(bases.values(), 1):
        embeddings[other[0] + k * count, other[1]] += gap @ basis @ basis.T
    names = [f"{name} {i}" for name in (CLEAN, COUNTERPART, *bases) for i in range(count)]
    return Prepared([*names, ""], replace(text, embeddings=embeddings))
