"""Study: the tables of chapters 6 to 11 as plain numbers, for the commands, for a model's folder, and for its claims.

Each function takes a `pretrained.Model` and prompts, checks what it is asked before any sampling, and returns a record
that is written to JSON as it is. Heads are named L0H0; a score comes with its 95 % interval over prompts.
"""
import re
from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from .ablation import ablate, conditions, effects, heads_of, mask_roles, mean_outputs, name
from .captions import ROLES, parse
from .circuit import find, shares, tests
from .injection import relation_vectors, steer
from .metrics import METRICS, prompt_set, summarise
from .sample import STEPS
from .scenes import REVERSE
from .synopsis import CLASSES, ranking, synopsis
from .weights import screen

EARLY = slice(0, 7)  # the steps over which a relation's vector is averaged: while places are still open


def head(text: str) -> tuple[int, int]:
    """"L2H3" -> (2, 3). Raises ValueError for another form."""
    found = re.fullmatch(r"L(\d+)H(\d+)", text)
    if not found:
        raise ValueError(f"head {text!r} is not of the form L2H3 (layer 2, head 3)")
    return int(found[1]), int(found[2])


def records(frame: pd.DataFrame, digits: int = 6) -> list[dict]:
    """The rows of a frame, its index included, as plain numbers rounded to `digits`."""
    frame = frame.reset_index() if frame.index.names != [None] else frame
    return [{k: round(v, digits) if isinstance(v, float) else v for k, v in row.items()} for row in frame.to_dict("records")]


def run_synopsis(model, prompts: Sequence[str], per_prompt: int = 4, seed: int = 1, step: int | str = "mean",
                 progress: bool = False) -> dict:
    """Ranking of all heads by both scores, and how each score's top head attends at every step (chapter 6)."""
    if step not in ("mean", "max") and (not isinstance(step, int) or not 0 <= step < STEPS):
        raise ValueError(f"step {step!r} is out of range; choose 0 to {STEPS - 1}, mean or max")
    found = synopsis(model, prompts, per_prompt, seed, progress=progress)
    table = ranking(found, step=step)
    share = found.share[found.images > 0, 1].mean(0)                                          # [steps, L, H, 3, R]
    curves = {}
    for score, rows in table.groupby("score", sort=False):
        best = rows.iloc[0]
        here = share[:, int(best["layer"]), int(best["head"])]                                # [steps, 3, R]
        curves[score] = {"name": best["name"], "share": {place: {role: [round(v, 4) for v in here[:, c, r].tolist()]
                         for r, role in enumerate(ROLES)} for c, place in enumerate(CLASSES)}}
    return {"prompts": len(prompts), "images": int(found.images.sum()), "failed": int(found.failed.sum()), "step": step,
            "heads": records(table), "curves": curves}


def run_screen(model, prompts: Sequence[str]) -> dict:
    """Ramp scores of all heads and direction words, from the weights alone (chapter 7)."""
    return {"prompts": len(prompts), "heads": records(screen(model.transformer, model.encoder, list(prompts)))}


def run_ablate(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1, heads: Sequence[str] = (), together: bool = False,
               kind: str = "mean", role: str | None = None, when: Sequence[int] | None = None, progress: bool = False) -> dict:
    """What fails without each head (all by default), or without the named ones together; or with a role hidden from them
    (chapter 9). Raises ValueError for a head, role, step or kind that does not exist."""
    if kind not in ("mean", "zero"):
        raise ValueError(f"kind {kind!r} is unknown; choose from mean, zero")
    late = [s for s in when or [] if not 0 <= s < STEPS]
    if late:
        raise ValueError(f"step {late[0]} is out of range; the run has steps 0 to {STEPS - 1}")
    chosen = [head(h) for h in heads] or heads_of(model)
    sets = {"+".join(name(*h) for h in chosen): chosen} if together else {name(*h): [h] for h in chosen}
    conditions(model, sets)                                                                   # refuses heads out of range
    options = {"when": when, "progress": progress}
    if role:
        frame = mask_roles(model, prompts, {k: (role, v) for k, v in sets.items()}, per_prompt, seed, **options)
    else:
        mean = mean_outputs(model, prompt_set("264")) if kind == "mean" else None
        frame = ablate(model, prompts, sets, per_prompt, seed, mean, **options)
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed, "kind": f"{role} hidden" if role else kind,
            "when": when, "effects": records(effects(frame))}


def run_circuit(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1, mean: Tensor | None = None,
                progress: bool = False) -> dict:
    """The circuit found on every fourth prompt and tested on the rest; and relations moved by injection (chapters 10, 11)."""
    if len(prompts) < 4:
        raise ValueError(f"{len(prompts)} prompts are too few: the circuit is found on every fourth and tested on the rest")
    discovery, held_out = list(prompts[::4]), [p for i, p in enumerate(prompts) if i % 4]
    circuit = find(model, discovery)
    mean = mean_outputs(model, prompt_set("264")) if mean is None else mean
    tested = tests(model, held_out, circuit.heads, mean, per_prompt=per_prompt, seed=seed, progress=progress)
    together = ablate(model, held_out, {"relation": circuit.relation, "object": circuit.object, "colour": circuit.colour},
                      per_prompt, seed, mean, progress=progress)
    vectors = relation_vectors(model, prompt_set("264"), circuit.relation)[:, EARLY].mean(1)
    targets = [int(REVERSE[parse(p).relation]) for p in held_out]
    moved = steer(model, held_out, targets, vectors, (0, 1), "position embedding", per_prompt=per_prompt, seed=seed, progress=progress)
    return {"prompts": len(held_out), "discovery_prompts": len(discovery), "images_per_prompt": per_prompt, "seed": seed,
            "circuit": {role: [name(*h) for h in getattr(circuit, role)] for role in ("relation", "object", "colour")},
            "heads": len(heads_of(model)), "found": records(circuit.trace.drop(columns="head")),
            "tests": {m: records(shares(tested, m).rename_axis("condition")) for m in ("loose", "shape", "unique_binding")},
            "without": records(effects(together)),
            "injection": records(summarise(moved, "condition").loc[lambda t: t.index.get_level_values(1).isin(METRICS)])}
