"""Tables of chapters 13 to 15, about the text, as plain numbers: for the commands, a model's
folder, and its claims. As in `tables`, each function returns a record that is written to JSON as it
is.
"""
from collections.abc import Container, Sequence

import pandas as pd
from torch import Tensor

from ..analyses import subspaces
from ..analyses.ablation import mask_roles
from ..analyses.arithmetic import arithmetic, exchanged, interchange_token
from ..analyses.circuit import heads_by_attention, shares
from ..analyses.factors import labels, partition, relation_effects, screen_effects, token_vectors
from ..analyses.heads import INTACT, head_name
from ..analyses.intervals import mean_interval, wilson
from ..analyses.robustness import alignment, robustness, shifts
from ..analyses.sweep import effects
from ..analyses.token_exchange import exchange_table, exchange_tokens
from ..data.captions import parse
from ..data.metrics import METRICS, prompt_set
from ..data.scenes import RELATIONS
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.counterparts import counterpart, relations_said
from ..text.roles import role_mask
from ..text.wordings import supported
from .population import finite
from .tables import OUTCOMES, metric_means, records, require_obeyed, require_scored

PROMPT_ROLES = ("colour1", "shape1", "relation", "colour2", "shape2", "end")  # of every prompt
WINDOWS = {"steps 0-1": range(0, 2), "steps 2-4": range(2, 5), "steps 5-8": range(5, 9),
           f"steps 9-{STEPS - 1}": range(9, STEPS)}

TOKENS = ("shape2", "shape1", "relation")  # whose embeddings are taken apart


def run_tokens(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
               windows: bool = True, progress: bool = False) -> dict:
    """Scores with each role hidden from all heads, at all steps and per window of steps (chapter
    13, claim C10). Raises ValueError for a model that never obeys a relation."""
    groups: dict[str, tuple] = {role: (role, None) for role in PROMPT_ROLES}
    if windows:
        groups |= {f"{role}, {w}": (role, None, list(steps))
                   for role in ("shape1", "relation", "shape2", "end")
                   for w, steps in WINDOWS.items()}
    for role in PROMPT_ROLES:
        role_mask(model.encoder, prompts, role)                 # refuses before anything is sampled
    require_obeyed(model, prompts, per_prompt, seed)
    frame = mask_roles(model, prompts, groups, per_prompt, seed, progress=progress)
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
            "effects": records(effects(frame, OUTCOMES)),
            "shares": records(shares(frame).rename_axis("condition"))}


def run_factors(model: Model, prompts: Sequence[str], n_perm: int = 1000) -> dict:
    """Variance partition of three tokens before and after the caption MLP, and the heads that their
    relation effects find (chapters 13 and 14, claims C11 and C12). No picture is sampled.

    Raises ValueError if the prompts leave a relation out.
    """
    _require_relations(prompts, "give a larger --limit")
    rows, heads = [], []
    for role in TOKENS:
        for stage, net in (("encoder", None), ("caption MLP", model.transformer)):
            vectors = token_vectors(model.encoder, prompts, role, net)
            found = partition(vectors, labels(prompts, role), n_perm)
            part = {"token": role, "stage": stage, "r2": round(found.r2, 6)}
            rows += [{**part, **r} for r in records(found.table)]
        table = screen_effects(model.transformer, relation_effects(found), n_perm)
        heads += [{"token": role, **r} for r in records(table)]
    return {"prompts": len(prompts), "permutations": n_perm, "partition": rows, "heads": heads}


def _require_relations(prompts: Sequence[str], hint: str) -> None:
    """Raise ValueError, with a hint, unless the prompts say all relations: each has an effect."""
    said = len(set(relations_said(prompts)))
    if said < len(RELATIONS):
        raise ValueError(f"the effects of relations are estimated from {len(prompts)} prompts, "
                         f"which say {said} of {len(RELATIONS)} relations; {hint}")


def _effects(vectors: Tensor, prompts: Sequence[str], role: str) -> Tensor:
    """[8, D]: each relation's effect on a role's token."""
    return relation_effects(partition(vectors, labels(prompts, role), n_perm=0))


def run_arithmetic(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
                   scales: Sequence[float] = (1.0, 2.0, 3.0),
                   roles: Sequence[str] = ("shape2", "relation"), progress: bool = False) -> dict:
    """Relations moved by arithmetic on one token, all 8 targets; and by taking the token of the
    opposite prompt (chapter 14, C13).

    The prompts that are changed are left out when the effects are estimated. Raises ValueError if
    that leaves a relation out, or where a prompt and its opposite differ in their tokens.
    """
    require_scored(model, prompts)
    rest = [p for p in prompt_set("264") if p not in prompts]
    _require_relations(rest, f"{len(prompts)} prompts are to be changed: give a smaller --limit")
    donors = [counterpart(p, "relation") for p in prompts]
    for role in roles:
        exchanged(model.encoder, prompts, donors, role)         # refuses before anything is sampled
    vectors = {role: token_vectors(model.encoder, rest, role) for role in roles}
    v = {role: _effects(vectors[role], rest, role) for role in roles}
    out: dict = {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
                 "scales": list(scales), "moved": [], "targets": [], "graft": []}
    for role in roles:
        frame = arithmetic(model, prompts, v[role], scales, role, per_prompt, seed,
                           progress=progress)
        frame = frame[frame["new"] != frame["old"]]
        out["moved"] += [{"token": role, **r} for r in metric_means(frame, ["vector", "k"])]
        ours = frame[frame["vector"] == "relation"]
        best = ours.groupby("k")["loose"].mean().idxmax()
        targets = metric_means(ours[ours["k"] == best], ["new"])
        out["targets"] += [{"token": role, "k": float(best), **r} for r in targets]
        swapped = interchange_token(model, prompts, donors, role, per_prompt, seed)
        out["graft"] += [{"token": role, **r} for r in metric_means(swapped, ["condition"])]
    return out


def run_robustness(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
                   families: Sequence[str] | None = None, progress: bool = False) -> dict:
    """Scores of every wording, the ratio of each to T0, the lean of what fails, and the shifts that
    wordings cause (chapter 15, claims C14 and C15). T0 is always among them.

    Raises ValueError if the prompts leave a relation out, or a model that never obeys one.
    """
    require_scored(model, prompts)
    _require_relations(prompts, "give a larger --limit")
    vectors = {role: token_vectors(model.encoder, prompts, role, model.transformer)
               for role in TOKENS}
    v = {role: _effects(vectors[role], prompts, role) for role in TOKENS}
    require_obeyed(model, prompts, per_prompt, seed)
    if families is not None:
        families = ["T0", *(f for f in families if f != "T0")]
    frame = robustness(model, prompts, families, per_prompt, seed, progress=progress)
    first = frame.assign(condition=frame["condition"].replace("T0", INTACT))
    ratio = shares(first).rename(index={INTACT: "T0"}).rename_axis("condition")
    lean = frame.groupby("condition", sort=False)[["dx", "dy"]].mean()
    rows = []
    for role in TOKENS:
        for family in frame["condition"].unique()[1:]:
            try:
                moved = shifts(model.encoder, prompts, family, role, model.transformer)
            except ValueError:                                  # the wording leaves no such token
                continue
            if moved.norm() > 1e-3:
                table = records(alignment(moved, v[role], vectors[role]))
                rows += [{"token": role, "family": family, **r} for r in table]
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
            "unread": supported(model.encoder, prompts),
            "effects": records(effects(frame, OUTCOMES)), "ratio": records(ratio),
            "lean": records(lean), "shifts": rows}


def run_subspaces(model: Model, prompts: Sequence[str], seed: int = 1, iterations: int = 80,
                  ranks: Sequence[int] = (1, 2), other: Model | None = None,
                  progress: bool = False) -> dict:
    """In how many dimensions side and axis of the relation sit at the relation word, at shape2 and
    at the object head's query: learned subspaces beside random ones, the mean differences and the
    whole vector, by predictions and in pictures (chapters 13 and 14).

    Learned on every second prompt and tested on the rest, whose phrases are split so that some were
    not seen, and, at tokens, in another model with the same encoder. Raises ValueError for too few
    prompts, prompts whose counterparts have other tokens, or another encoder.
    """
    splits = {part: _split_phrases(prompts, usable) for part, usable in
              (("side", prompts), (subspaces.AXIS, subspaces.turned(model.encoder, prompts)))}
    if other is not None and other.text != model.text:
        raise ValueError(f"{other.name} has encoder {other.text} and {model.name} {model.text}; "
                         "a subspace of a token is carried over between models of one encoder")
    require_obeyed(model, prompts, 1, seed)
    reader = heads_by_attention(model, prompts[::2], seed=seed)[1]
    sites: dict[str, subspaces.Site] = {"relation": "relation", "shape2": "shape2",
                                        f"query of {head_name(*reader)}": reader}
    rows: list[dict] = []
    pictures: list[dict] = []
    for part, factor in (("side", "relation"), (subspaces.AXIS, subspaces.AXIS)):
        learning, testing, fresh = splits[part]
        for name, site in sites.items():
            place = {"part": part, "site": name}
            bases = _bases(model, learning, site, ranks, factor, iterations, seed)
            tests = [("other prompts", model, testing), ("other phrases", model, fresh)]
            if other is not None and isinstance(site, str):
                tests.append((other.name, other, testing))
            for kind, tested, some in tests:
                found = subspaces.subspace_effects(tested, some, site, bases, factor, seed=seed)
                rows += [place | {"tested": kind} | row for row in _means(found)]
            drawn = {k: basis for k, basis in bases.items() if not k.startswith("means")}
            frame = subspaces.subspace_pictures(model, [*testing, *fresh], site, drawn, factor,
                                                seed, progress=progress)
            pictures += [place | row for row in _followed(frame, part)]
    return {"prompts": len(prompts), "seed": seed, "iterations": iterations,
            "learning_prompts": {part: len(some[0]) for part, some in splits.items()},
            "other": other.name if other else None, "effects": rows, "pictures": pictures}


def _split_phrases(prompts: Sequence[str], usable: Container[str]) -> tuple[list[str], ...]:
    """The usable prompts to learn on, to test on, and of every fourth phrase, kept out of both."""
    held_out = list(dict.fromkeys(parse(p).phrase for p in prompts))[::4]
    chosen = [p for p in prompts if p in usable]
    fresh = [p for p in chosen if parse(p).phrase in held_out]
    seen = [p for p in chosen if p not in fresh]
    if len(seen) < 2 or not fresh:
        raise ValueError(f"{len(prompts)} prompts are too few: subspaces are learned on half of "
                         "them and tested on the rest, some phrases kept out; give more")
    return seen[::2], seen[1::2], fresh


def _bases(model: Model, prompts: Sequence[str], site: subspaces.Site, ranks: Sequence[int],
           factor: str, iterations: int, seed: int) -> dict[str, Tensor | None]:
    """Subspaces of a site: learned, of the means and random, of each rank; None is all of it."""
    found: dict[str, Tensor | None] = {"whole vector": None}
    told, size = (model, prompts, site), subspaces.site_size(model, site)
    for k in ranks:
        found[f"learned {k}"] = subspaces.learn_subspace(*told, k, factor, iterations, seed=seed)
        found[f"means {k}"] = subspaces.mean_difference_subspace(*told, k, factor, seed)
        found[f"random {k}"] = subspaces.random_subspace(size, k, seed)
    return found


def _means(found: pd.DataFrame) -> list[dict]:
    """Mean effect of each subspace with its interval over prompts."""
    low, high = mean_interval(found.to_numpy())
    table = pd.DataFrame({"subspace": list(found), "mean": found.mean().to_numpy(), "low": low,
                          "high": high, "prompts": len(found)})
    return records(table)


def _followed(frame: pd.DataFrame, part: str) -> list[dict]:
    """Share of the pictures that show the clean prompt's part, by subspace, with Wilson's
    interval."""
    rows = []
    for condition, some in frame.groupby("condition", sort=False):
        low, high = wilson(int(some[part].sum()), len(some))
        rows.append({"subspace": condition, "share": float(some[part].mean()), "low": low,
                     "high": high, "prompts": len(some)})
    return rows


def run_exchange(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
                 progress: bool = False) -> dict:
    """Which words carry axis and side of the relation: pictures that show the donor's, by the
    tokens taken from it (chapter 17). Raises ValueError for a prompt without a relation.

    "exchange" counts pictures by kind of donor and tokens; "table" has the shares with intervals
    beside the control, "relations" the same by the donor's relation.
    """
    require_scored(model, prompts)
    frame = exchange_tokens(model, prompts, per_prompt=per_prompt, seed=seed, progress=progress)
    own = frame[frame["kind"] == "own"]
    rows = [{"kind": kind, "tokens": tokens, "axis": int(part["axis"].sum()),
             "side": int(part["side"].sum()), "kept": int(part["kept"].sum()),
             "found": int(part["unique_binding"].sum()), "pictures": len(part)}
            for (kind, tokens), part in frame.groupby(["kind", "tokens"], sort=False)]
    turned = frame[frame["kind"].isin(("opposite", "turned"))]
    by_relation = exchange_table(turned, ("kind", "tokens", "target"))
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
            "scores": {m: float(own[m].mean()) for m in METRICS}, "exchange": rows,
            "table": finite(records(exchange_table(frame))),
            "relations": finite(records(by_relation))}
