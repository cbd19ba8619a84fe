"""Fused: which heads read the relation from a token that is not its word, and what they turn.

Where the text encoder has written the relation onto the second shape's token, one head can read
shape, colour and place from it at once. `circuit.find_circuit` looks for relation heads among those
that carry neither shape nor colour, and so cannot see it. Here a head may have several roles: the
tokens of one role as a donor of another relation has them take the place of the prompt's, with
their keys and values, for some heads alone; every head belongs to the readers that brings the
prediction, or the picture, to where it is when all heads read the donor's.

Both tokens stand in the text, and either is hidden from each head, so that donor and prompt may
differ in their number of tokens.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..hooks.attach import hooked
from ..hooks.core import Hook
from ..hooks.edits import MaskKeys
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import predict
from ..text.prepared import Prepared
from . import token_exchange
from .heads import Head, head_masks, heads_of, named_heads, other_heads
from .intervals import mean_interval, percentiles
from .patching import clean_trace, prediction_effects
from .sweep import spread, sweep

EVERY_HEAD, NO_HEAD, READERS, OTHERS = "all heads", "no head", "readers", "all others"
RANDOM_SET = "random"
PARTS_BY_KIND = {"opposite": "side", "turned": "axis"}   # what each kind of donor turns
SHARED_ROLES = ("shape", "colour")                       # other roles that a reader may have


@dataclass
class Doubled:
    """Texts [P] that hold a role's tokens twice, the prompt's and a donor's, and which they are."""
    text: Prepared
    mine: Tensor        # [P, T] the prompt's tokens of the role
    theirs: Tensor      # [P, T] the donor's

    def hidden(self, sets: Sequence[Sequence[Head]], model: Model, times: int = 1,
               branch: str = "cond") -> list[Hook]:
        """Hooks by which set c of heads reads the donor's tokens and all others the prompt's, for
        samples [P * times * C], conditions fastest."""
        where = spread(head_masks(model, sets), len(self.mine) * times)
        each = len(sets) * times
        pairs = (self.mine, where), (self.theirs, ~where)
        return [MaskKeys(keys.repeat_interleave(each, 0), chosen, branch=branch)
                for keys, chosen in pairs if chosen.any()]


def doubled(model: Model, prompts: Sequence[str], given: Sequence[str], tokens: str) -> Doubled:
    """Each prompt with a donor's tokens of a role, "shape2" or "a+b", added. Raises ValueError for
    a prompt or donor without such a token."""
    text, row_of = token_exchange.encoded(model.encoder, [*prompts, *given])
    rows, counts = [], []
    for prompt, donor in zip(prompts, given):
        parts = [token_exchange.picked(text, row_of[prompt], tokens, inside=False),
                 *(token_exchange.picked(text, row_of[p], tokens) for p in (prompt, donor))]
        for told, part in zip((prompt, donor), parts[1:]):
            if not part:
                raise ValueError(f"{told!r} holds no token of role {tokens}")
        rows.append(sum(parts, []))
        counts.append([len(part) for part in parts])
    made = token_exchange.assembled(text, rows)
    places = torch.arange(made.text.mask.shape[1])
    ends = torch.tensor(counts).cumsum(1)[:, :, None]                                # [P, 3, 1]
    return Doubled(made, (places >= ends[:, 0]) & (places < ends[:, 1]),
                   (places >= ends[:, 1]) & (places < ends[:, 2]))


@torch.no_grad()
def reading_effects(model: Model, prompts: Sequence[str], given: Sequence[str], tokens: str,
                    sets: Mapping[str, Sequence[Head]], steps: int = STEPS, every: int = 4,
                    seed: int = 1, batch: int = 256) -> pd.DataFrame:
    """How far each set of heads, reading a donor's tokens of a role, brings the prediction to where
    it is when every head does: rows prompts, columns `sets`.

    Scaled as `patching.prediction_effects`, and as there the smaller of two: the set alone reads
    the donor's (enough), or all heads but the set (nothing is left); at the latents of the prompt's
    own run. Raises ValueError as `doubled` does, and where the tokens change nothing.
    """
    made, net = doubled(model, prompts, given, tokens), model.transformer
    everyone = heads_of(model)
    alone = list(sets.values())
    chosen = [everyone, (), *alone, *(other_heads(model, s) for s in alone)]
    device, dtype = next((p.device, p.dtype) for p in net.parameters())
    errors, whole = torch.zeros(len(prompts), 2, len(alone)), torch.zeros(len(prompts))
    trace = clean_trace(model, prompts, steps, seed)[::every]
    size = max(1, batch // len(chosen))
    for start in range(0, len(prompts), size):
        here = slice(start, min(start + size, len(prompts)))
        part = Doubled(made.text, made.mine[here], made.theirs[here])
        count = len(part.mine)
        text = made.text.encode([str(i) for i in range(here.start, here.stop)
                                 for _ in chosen])
        embeddings, mask = text.embeddings.to(device, dtype), text.mask.to(device)
        with hooked(net, *part.hidden(chosen, model)) as session:
            for i, x, t in trace:
                session.at(i, ("cond",))
                latents = x[here].repeat_interleave(len(chosen), 0).to(device, dtype)
                eps = predict(net, latents, t.expand(len(latents)).to(device), embeddings, mask)
                eps = eps.float().cpu().view(count, len(chosen), -1)
                whole[here] += (eps[:, 0] - eps[:, 1]).square().sum(-1)
                both = eps[:, 2:].unflatten(1, (2, -1))                       # [P, 2, C, ...]
                errors[here] += (both - eps[:, :2, None]).square().sum(-1)
    if not (whole > 0).all():
        told = prompts[int((whole == 0).nonzero()[0])]
        raise ValueError(f"the model predicts the same for {told!r} whichever {tokens} it reads, "
                         "so that no head reads the relation there")
    effects = (1 - errors / whole[:, None, None]).amin(1)
    return pd.DataFrame(effects.numpy(), list(prompts), list(sets))


def find_readers(model: Model, prompts: Sequence[str], tokens: str, target: float = 0.9,
                 limit: int = 6, seed: int = 1, **options) -> pd.DataFrame:
    """A small set of heads, found greedily, that reads a role's tokens for the relation; none is
    left out for what else it carries.

    Donors are the opposite and the turned ones of `token_exchange.donors`. Ends as
    `patching.greedy_patching` does, with the effects of `reading_effects`. A row a round: name,
    head, effect, low, high (95 % bootstrap over prompts). Raises ValueError as that does.
    """
    found = token_exchange.donors(prompts)
    told = [*prompts, *prompts]
    given = [*found["opposite"], *found["turned"]]
    chosen: list[Head] = []
    rows: list[dict] = []
    while len(chosen) < limit and (not rows or rows[-1]["effect"] < target):
        left = [h for h in heads_of(model) if h not in chosen]
        sets = {name: [*chosen, *head] for name, head in named_heads(left).items()}
        effects = reading_effects(model, told, given, tokens, sets, seed=seed, **options)
        best = effects.mean().idxmax()
        if not sets or rows and effects[best].mean() <= rows[-1]["effect"]:
            break
        chosen.append(sets[best][-1])
        low, high = mean_interval(effects[best].to_numpy(), told, seed=seed)
        rows.append({"name": best, "head": chosen[-1], "effect": float(effects[best].mean()),
                     "low": float(low), "high": float(high)})
    return pd.DataFrame(rows, columns=["name", "head", "effect", "low", "high"])


def shared_roles(model: Model, prompts: Sequence[str], heads: Sequence[Head], seed: int = 1,
                 **options) -> pd.DataFrame:
    """What else heads carry: a row a head, the mean effect of patching it alone in both directions
    (`patching.prediction_effects`) for shape and colour."""
    sets = named_heads(heads)
    return pd.DataFrame({factor: prediction_effects(model, prompts, factor, sets, "both",
                                                    seed=seed, **options).mean()
                         for factor in SHARED_ROLES}).rename_axis("name")


def turn_pictures(model: Model, prompts: Sequence[str], tokens: str, readers: Sequence[Head],
                  draws: int = 100, per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Pictures in which no head, every head, the readers, all others, or as many heads drawn at
    random ("random 1" ...) read a role's tokens from the opposite and the turned donor.

    Frame of `sweep` plus kind and original (the prompt); axis and side are scored for the donor.
    Every random set is drawn, none is put together from the effects of single heads. Raises
    ValueError for no reader, draws < 1, or as `doubled` does.
    """
    if not readers or draws < 1:
        raise ValueError(f"{len(readers)} readers and {draws} draws; give at least one of each")
    rng, everyone = np.random.default_rng(seed), heads_of(model)
    sets: dict[str, Sequence[Head]] = {
        NO_HEAD: (), EVERY_HEAD: everyone, READERS: readers, OTHERS: other_heads(model, readers)}
    for i in range(draws):
        picks = rng.choice(len(everyone), len(readers), replace=False)
        sets[f"{RANDOM_SET} {i + 1}"] = [everyone[k] for k in picks]
    found, frames = token_exchange.donors(prompts), []
    for kind in PARTS_BY_KIND:
        made = doubled(model, prompts, found[kind], tokens)
        frame = sweep(replace(model, encoder=made.text), list(map(str, range(len(prompts)))),
                      list(sets), made.hidden(list(sets.values()), model, per_prompt), per_prompt,
                      seed, scored=found[kind], **options)
        original = [p for p in prompts for _ in range(per_prompt * len(sets))]
        frames.append(frame.assign(kind=kind, original=original))
    return pd.concat(frames, ignore_index=True)


def turned_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Side toward opposite donors and axis toward turned ones, of the pictures of `turn_pictures`.

    Rows: part, heads, share, low, high (Wilson's 95 % over prompts; for "random" the middle 95 % of
    the sets), of_all (the share of what turns when every head reads the donor's, above what is so
    by no head), prompts and p: sets drawn that turn as many, the readers among them, Holm's
    correction over the parts; NaN but for the readers, and where no heads turn anything.
    """
    rows = []
    for kind, part in PARTS_BY_KIND.items():
        own = frame[frame["kind"] == kind]
        cells = own.groupby(["original", "condition"], sort=False)[part].mean().unstack()
        means, drawn = cells.mean(), [c for c in cells if c.startswith(RANDOM_SET)]
        room = means[EVERY_HEAD] - means[NO_HEAD]
        p = (1 + int((means[drawn] >= means[READERS] - 1e-9).sum())) / (1 + len(drawn))
        for name in (NO_HEAD, EVERY_HEAD, READERS, OTHERS, RANDOM_SET):
            some = means[drawn].mean() if name == RANDOM_SET else means[name]
            low, high = percentiles(means[drawn].to_numpy()) if name == RANDOM_SET \
                else token_exchange.wilson_clusters(cells[name].to_numpy(float))
            of_all = (some - means[NO_HEAD]) / room if room > 0 else np.nan
            rows.append((part, name, float(some), float(low), float(high), float(of_all),
                         len(cells), p if name == READERS and room > 0 else np.nan))
    table = pd.DataFrame(rows, columns=["part", "heads", "share", "low", "high", "of_all",
                                        "prompts", "p"])
    return table.assign(p=token_exchange.holm(table["p"].to_numpy()))
