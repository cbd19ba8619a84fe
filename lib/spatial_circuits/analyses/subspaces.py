"""Subspaces: in how many dimensions a factor sits at one place of the model, found by gradient.

Distributed alignment search (Geiger et al. 2024, arXiv 2303.02536): in the counterpart's run, the
part of a vector that lies in a k-dimensional subspace is taken from the clean run; the subspace is
learned so that the prediction becomes the clean one. A *site* is the tokens of a role, as the
encoder gives them ("shape2"), or the query of one head ((1, 3): the tag that says to the object
head which object belongs to a place). Beside it stand a random subspace, the principal directions
of the mean differences, and the whole vector.
"""
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..hooks.attach import hooked
from ..hooks.core import Call, Hook, Reader
from ..hooks.edits import Patch
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import predict
from ..text.counterparts import counterpart, relations_said
from ..text.roles import occurrences
from .heads import Head, check_heads
from .patching import clean_trace

Site = str | Head


class _HeadQuery(Reader):
    """The query [B, N, d] of one head in the last call."""

    def __init__(self, head: Head):
        super().__init__([head])
        self.number = head[1]

    def read(self, call: Call) -> None:
        self.query = call.query[:, self.number]


class _Pair:
    """The prompts and their counterparts in a factor, at the latents of the clean runs; predicts
    for either, and for the counterpart with a part of the site taken from the clean prompt."""

    def __init__(self, model: Model, prompts: Sequence[str], site: Site, factor: str, steps: int,
                 every: int, seed: int):
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if not isinstance(site, str):
            check_heads(model, [site])
        self.model, self.site, self.count = model, site, len(prompts)
        others = [counterpart(p, factor) for p in prompts]
        text = model.encoder.encode([*prompts, *others])
        net = model.transformer
        self.device, self.dtype = next((p.device, p.dtype) for p in net.parameters())
        self.text = text.embeddings.to(self.device, self.dtype)                   # [2 P, T, D]
        self.mask = text.mask.to(self.device)
        self.trace = clean_trace(model, prompts, steps, seed)[::every]
        if isinstance(site, str):
            row, token = occurrences(text, site)
            mine, theirs = row < self.count, row >= self.count
            self.clean, self.other = (row[mine], token[mine]), (row[theirs], token[theirs])
            if not torch.equal(self.clean[0], self.other[0] - self.count):
                raise ValueError(f"a prompt and its counterpart in {factor} differ in their number "
                                 f"of tokens of role {site}, or have none")

    @property
    def dim(self) -> int:
        """Dimensions of the site."""
        if isinstance(self.site, str):
            return self.text.shape[-1]
        attention = self.model.transformer.transformer_blocks[self.site[0]].attn2
        return attention.to_q.out_features // attention.heads

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
        reader = _HeadQuery(self.site)
        with torch.no_grad():
            self.run(0, None, reader)
        clean, other = reader.query.float().cpu().split(self.count)                  # [P, N, d]
        gap = clean - other
        sign = torch.sign((gap * gap[:, :1]).sum(-1, keepdim=True))                  # [P, N, 1]
        return (gap * sign).mean(1)


def learn_subspace(model: Model, prompts: Sequence[str], site: Site, rank: int,
                   factor: str = "relation", iterations: int = 80, rate: float = 0.2,
                   steps: int = STEPS, every: int = 4, seed: int = 1) -> Tensor:
    """An orthonormal basis [D, rank] whose part of the site, taken from the clean prompt, makes the
    counterpart's prediction most like the clean one; on the CPU, the same for the same seed.

    Each iteration is a step of Adam, at a falling rate, at one of the trace's steps in turn. Raises
    ValueError for a rank out of range, a site that prompts or model lack, or a prompt without
    counterpart.
    """
    pair = _Pair(model, prompts, site, factor, steps, every, seed)
    if not 1 <= rank <= pair.dim:
        raise ValueError(f"rank is {rank}; the site has 1 to {pair.dim} dimensions")
    free = random_subspace(pair.dim, rank, seed).to(pair.device).requires_grad_()
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
    pair = _Pair(model, prompts, site, factor, steps, every, seed)
    whole = torch.eye(pair.dim)
    for name, basis in bases.items():
        if basis is not None and len(basis) != pair.dim:
            raise ValueError(f"basis {name!r} has {len(basis)} dimensions; the site has {pair.dim}")
    errors, gaps = torch.zeros(len(bases), pair.count), torch.zeros(pair.count)
    for i in range(len(pair.trace)):
        clean, other = pair.run(i)
        gaps += (other - clean).square().flatten(1).sum(1).cpu()
        for j, basis in enumerate(bases.values()):
            used = (whole if basis is None else basis).to(pair.device, pair.dtype)
            patched = pair.run(i, used)[1]
            errors[j] += (patched - clean).square().flatten(1).sum(1).cpu()
    return pd.DataFrame((1 - errors / gaps).T.numpy(), index=list(prompts), columns=list(bases))
