"""Study of the text: the tables of chapters 13 to 15 as plain numbers, for the commands, for a model's folder, and for its claims.

Each function takes a `pretrained.Model` and prompts and returns a record that is written to JSON as it is (see `study`).
"""
from collections.abc import Sequence

import pandas as pd

from .ablation import INTACT, effects, mask_roles
from .arithmetic import arithmetic, graft
from .circuit import shares
from .factors import labels, partition, relation_effects, screen, token_vectors
from .metrics import METRICS, summarise
from .patching import counterpart
from .perturb import alignment, robustness, shifts, supported
from .study import records

ROLES = ("colour1", "shape1", "relation", "colour2", "shape2", "end")  # what every prompt has
WINDOWS = {"steps 0-1": range(0, 2), "steps 2-4": range(2, 5), "steps 5-8": range(5, 9), "steps 9-13": range(9, 14)}
TOKENS = ("shape2", "shape1", "relation")  # whose embeddings are taken apart
THE = ("T2 no is, the", "T3 the", "T4 the, the")


def run_tokens(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1, windows: bool = True, progress: bool = False) -> dict:
    """Scores with each role hidden from all heads, at all steps and per window of steps (chapter 13, claim C10)."""
    groups = {role: (role, None) for role in ROLES}
    if windows:
        groups |= {f"{role}, {w}": (role, None, list(steps)) for role in ("shape1", "relation", "shape2", "end") for w, steps in WINDOWS.items()}
    frame = mask_roles(model, prompts, groups, per_prompt, seed, progress=progress)
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed, "effects": records(effects(frame)),
            "shares": records(shares(frame).rename_axis("condition"))}


def run_factors(model, prompts: Sequence[str], n_perm: int = 1000) -> dict:
    """Variance partition of three tokens before and after the caption MLP, and the heads that their relation effects find
    (chapters 13 and 14, claims C11 and C12). No picture is sampled."""
    rows, heads = [], []
    for role in TOKENS:
        for stage, net in (("encoder", None), ("caption MLP", model.transformer)):
            found = partition(token_vectors(model.encoder, prompts, role, net), labels(prompts, role), n_perm)
            rows += [{"token": role, "stage": stage, "r2": round(found.r2, 6), **r} for r in records(found.table)]
        table = screen(model.transformer, relation_effects(found), n_perm)
        heads += [{"token": role, **r} for r in records(table)]
    return {"prompts": len(prompts), "permutations": n_perm, "partition": rows, "heads": heads}


def run_arithmetic(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1, scales: Sequence[float] = (1.0, 2.0, 3.0),
                   roles: Sequence[str] = ("shape2", "relation"), progress: bool = False) -> dict:
    """Relations moved by arithmetic on one token, all 8 targets; and by grafting the token of the opposite prompt (chapter 14, C13).

    The prompts that are changed are left out when the effects are estimated.
    """
    from .metrics import prompt_set
    rest = [p for p in prompt_set("264") if p not in prompts]
    out = {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed, "scales": list(scales), "moved": [], "targets": [], "graft": []}
    for role in roles:
        found = relation_effects(partition(token_vectors(model.encoder, rest, role), labels(rest, role), n_perm=0))
        frame = arithmetic(model, prompts, found, scales, role, per_prompt, seed, progress=progress)
        frame = frame[frame["new"] != frame["old"]]
        out["moved"] += [{"token": role, **r} for r in records(_means(frame, ["vector", "k"]))]
        best = frame[frame["vector"] == "relation"].groupby("k")["loose"].mean().idxmax()
        chosen = frame[(frame["vector"] == "relation") & (frame["k"] == best)]
        out["targets"] += [{"token": role, "k": float(best), **r} for r in records(_means(chosen, ["new"]))]
        donors = [counterpart(p, "relation") for p in prompts]
        out["graft"] += [{"token": role, **r} for r in records(_means(graft(model, prompts, donors, role, per_prompt, seed), ["condition"]))]
    return out


def _means(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and 95 % interval over prompts of every metric, by the columns `by`."""
    table = summarise(frame, by)
    return table[table.index.get_level_values("metric").isin(METRICS)]


def run_robustness(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1, families: Sequence[str] | None = None,
                   progress: bool = False) -> dict:
    """Scores of every wording, the ratio of each to T0, the lean of what fails, and the shifts that wordings cause
    (chapter 15, claims C14 and C15)."""
    frame = robustness(model, prompts, families, per_prompt, seed, progress=progress)
    first = frame.assign(condition=frame["condition"].replace("T0", INTACT))
    ratio = shares(first).rename(index={INTACT: "T0"}).rename_axis("condition")
    lean = frame.groupby("condition", sort=False)[["dx", "dy"]].mean()
    out = {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed, "unread": supported(model.encoder, prompts),
           "effects": records(effects(frame)), "ratio": records(ratio), "lean": records(lean), "shifts": []}
    for role in TOKENS:
        vectors = token_vectors(model.encoder, prompts, role, model.transformer)
        found = relation_effects(partition(vectors, labels(prompts, role), n_perm=0))
        for family in frame["condition"].unique()[1:]:
            try:
                moved = shifts(model.encoder, prompts, family, role, model.transformer)
            except ValueError:                                                                # the wording leaves no such token
                continue
            if moved.norm() > 1e-3:
                out["shifts"] += [{"token": role, "family": family, **r} for r in records(alignment(moved, found, vectors))]
    return out
