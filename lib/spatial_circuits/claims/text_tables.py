"""Tables of chapters 13 to 15, about the text, as plain numbers: for the commands, a model's
folder, and its claims. As in `tables`, each function returns a record that is written to JSON as it
is.
"""
from collections.abc import Sequence

from torch import Tensor

from ..analyses.ablation import mask_roles
from ..analyses.arithmetic import arithmetic, exchanged, interchange_token
from ..analyses.circuit import shares
from ..analyses.factors import labels, partition, relation_effects, screen_effects, token_vectors
from ..analyses.heads import INTACT
from ..analyses.robustness import alignment, robustness, shifts
from ..analyses.sweep import effects
from ..data.metrics import prompt_set
from ..data.scenes import RELATIONS
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.counterparts import counterpart, relations_said
from ..text.wordings import supported
from .tables import OUTCOMES, metric_means, records, require_obeyed

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
