"""Tables of chapters 6 to 11 as plain numbers, for the commands, a model's folder, and its claims.

Each function checks what it is asked before any sampling, and returns a record that is written to
JSON as it is. Heads are named L0H0; a score comes with its 95 % interval over prompts.
"""
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from ..analyses import curves
from ..analyses.ablation import ablate, mask_roles, mean_outputs
from ..analyses.chunks import Chunks
from ..analyses.circuit import CIRCUIT_ROLES, find_circuit, shares, tests
from ..analyses.heads import INTACT, head_conditions, head_name, heads_of, parse_head
from ..analyses.injection import relation_vectors, steer
from ..analyses.intervals import summarise
from ..analyses.locate import Locator
from ..analyses.placed import check_when, placed_ablation, placed_effects, placed_synopsis
from ..analyses.screening import screen_layers
from ..analyses.sweep import effects, sweep
from ..analyses.synopsis import CLASSES, Synopsis, ranking, synopsis
from ..data.captions import ROLES
from ..data.metrics import METRICS, PARTS, check_prompts, prompt_set
from ..data.scenes import REVERSE, SIZE
from ..hooks.core import Heads
from ..model.pipeline import Model
from ..model.sampler import STEPS, ready_scheduler
from ..text.counterparts import relations_said
from .population import injection_layer

OUTCOMES = METRICS + PARTS
EARLY_STEPS = slice(0, 7)  # over which a relation's vector is averaged: while places are open


def records(frame: pd.DataFrame, digits: int = 6) -> list[dict]:
    """The rows of a frame, its index included, as plain numbers rounded to `digits`."""
    frame = frame.reset_index() if frame.index.names != [None] else frame
    return [{k: round(v, digits) if isinstance(v, float) else v for k, v in row.items()}
            for row in frame.to_dict("records")]


def metric_means(frame: pd.DataFrame, by: str | list[str]) -> list[dict]:
    """Mean and 95 % interval over prompts of every metric, axis and side, by the columns `by`."""
    table = summarise(frame, by)
    return records(table[table.index.get_level_values("metric").isin(OUTCOMES)])


def require_scored(model: Model, prompts: Sequence[str], predictions: bool = False) -> None:
    """Raise ValueError, before anything is drawn, for a model whose pictures the book's detector
    does not score, or a prompt that cannot be scored or encoded; with `predictions`, also for one
    whose prediction is read from latents alone, as no stock pipeline with another scheduler, more
    channels or conditions beside the text lets one do."""
    net = model.transformer.config
    pixels = net["sample_size"] * 2 ** (len(model.vae.model.config["block_out_channels"]) - 1)
    other = "synopsis, ablate, patch, inject, screen and heatmap take any PixArt"
    if pixels != SIZE:
        raise ValueError(f"{model.name} draws pictures of {pixels} px; this analysis scores those "
                         f"of {SIZE} px alone ({other})")
    noise = float(ready_scheduler(model.scheduler, STEPS).init_noise_sigma)
    plain = (net["in_channels"], net["out_channels"], noise) == (4, 4, 1.0)
    if predictions and (not plain or model.transformer.use_additional_conditions):
        raise ValueError(f"{model.name} has {net['in_channels']} channels and predicts "
                         f"{net['out_channels']}, from noise of size {noise:.4g}, with size "
                         f"conditions {model.transformer.use_additional_conditions}; this analysis "
                         f"needs 4, 4, 1 and False ({other})")
    check_prompts(prompts)
    for prompt in prompts:
        model.encoder.encode([prompt])


def require_obeyed(model: Model, prompts: Sequence[str], per_prompt: int = 1,
                   seed: int = 1) -> None:
    """Raise ValueError if the model never obeys a relation: shares of its score would be 0 / 0.

    Draws 32 prompts at a time, and ends at the first picture that is right; none before
    `require_scored` has let pass the model and all prompts.
    """
    require_scored(model, prompts)
    for start in range(0, len(prompts), 32):
        frame = sweep(model, prompts[start:start + 32], [INTACT], (), per_prompt, seed)
        if frame["loose"].any():
            return
    raise ValueError(f"model {model.name} obeys the relation of none of {len(prompts)} prompts, so "
                     "there is no score whose shares could be told; give more prompts, "
                     "or train it further")


def run_synopsis(model: Model, prompts: Sequence[str], per_prompt: int = 4, seed: int = 1,
                 step: int | str = "mean", progress: bool = False,
                 locate: Locator | None = None, chunks: Chunks | None = None) -> dict:
    """Ranking of all heads by both scores, and how each score's top head attends at every step
    (chapter 6); with a locator, for any model and any two things, the ranking alone, by the mean
    over steps, which `chunks` keep. Raises ValueError for another step than a number, "mean" or
    "max"."""
    if locate is not None:
        if step != "mean":
            raise ValueError(f"step is {step!r}; with a locator it must be mean")
        table = placed_synopsis(model, prompts, locate, per_prompt, seed, progress=progress,
                                chunks=chunks)
        return {"prompts": len(prompts), "images": int(table["images"][0]), "step": step,
                "heads": records(table)}
    if step not in ("mean", "max") and (not isinstance(step, int) or not 0 <= step < STEPS):
        raise ValueError(f"step {step!r} is out of range; choose 0 to {STEPS - 1}, mean or max")
    require_scored(model, prompts)
    found = synopsis(model, prompts, per_prompt, seed, progress=progress)
    table = ranking(found, step=step)
    best = {score: rows.iloc[0] for score, rows in table.groupby("score", sort=False)}
    curves = {score: {"name": row["name"], "share": _curves(found, row["layer"], row["head"])}
              for score, row in best.items()}
    return {"prompts": len(prompts), "images": int(found.images.sum()),
            "failed": int(found.failed.sum()), "step": step, "heads": records(table),
            "curves": curves}


def _curves(found: Synopsis, layer: int, head: int) -> dict[str, dict[str, list[float]]]:
    """A head's attention at every step, by image class and role."""
    share = found.share[found.images > 0, 1].mean(0)[:, layer, head]                 # [steps, 3, R]
    return {place: {role: [round(v, 4) for v in share[:, c, r].tolist()]
                    for r, role in enumerate(ROLES)} for c, place in enumerate(CLASSES)}


def run_screen(model: Model, prompts: Sequence[str], chunks: Chunks | None = None) -> dict:
    """Ramp scores of all heads and direction words, from the weights alone (chapter 7); `chunks`
    keep each layer's."""
    table = screen_layers(model, prompts, chunks)
    return {"prompts": len(prompts), "heads": records(table)}


def run_ablate(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
               heads: Sequence[str] = (), together: bool = False, kind: str | None = None,
               role: str | None = None, when: Sequence[int] | None = None,
               progress: bool = False, locate: Locator | None = None,
               chunks: Chunks | None = None) -> dict:
    """What fails without each head (all by default), or without the named ones together; or with a
    role hidden from them (chapter 9). With a locator for any model and any two things, by zero
    ablation, which `chunks` keep, else by mean ablation where no kind is said.

    Raises ValueError for a head, role, step or kind that does not exist, or a role and a kind.
    """
    if role and kind:
        raise ValueError(f"role {role!r} is hidden and no output ablated; leave out kind {kind!r}")
    kind = kind or ("mean" if locate is None else "zero")
    if kind not in (("mean", "zero") if locate is None else ("zero",)):
        raise ValueError(f"kind {kind!r} cannot be used here; choose from " + (
            "mean, zero" if locate is None else "zero, the only one with a locator"))
    check_when(model, when)
    if locate is None:
        require_scored(model, prompts)
    chosen = [parse_head(h) for h in heads] or heads_of(model)
    sets = {head_name(*h): [h] for h in chosen}
    if together:
        sets = {"+".join(sets): chosen}
    head_conditions(model, sets)                                        # refuses heads out of range
    options: dict[str, Any] = {"when": when, "progress": progress}
    if locate is not None:
        drawn = placed_ablation(model, prompts, sets, locate, per_prompt, seed, role,
                                chunks=chunks, **options)
        table = placed_effects(drawn)
    elif role:
        hidden = {name: (role, heads) for name, heads in sets.items()}
        frame = mask_roles(model, prompts, hidden, per_prompt, seed, **options)
        table = effects(frame, OUTCOMES)
    else:
        mean = mean_outputs(model, prompt_set("264")) if kind == "mean" else None
        frame = ablate(model, prompts, sets, per_prompt, seed, mean, **options)
        table = effects(frame, OUTCOMES)
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
            "kind": f"{role} hidden" if role else kind, "when": when,
            "effects": records(table)}


def discovery_and_test(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
                       least: int = 4) -> tuple[list[str], list[str]]:
    """Every fourth prompt, on which heads are found, and the rest, on which they are tested.

    Raises ValueError for fewer than `least`, as `require_scored` does by predictions, and for a
    model that never obeys the rest.
    """
    if len(prompts) < least:
        raise ValueError(f"{len(prompts)} prompts are too few: heads are found on every fourth and "
                         f"tested on the rest; give at least {least}")
    require_scored(model, prompts, predictions=True)
    held_out = [p for i, p in enumerate(prompts) if i % 4]
    require_obeyed(model, held_out, per_prompt, seed)
    return list(prompts[::4]), held_out


def run_circuit(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
                mean: Tensor | None = None, progress: bool = False) -> dict:
    """The circuit found on every fourth prompt and tested on the rest; and relations moved by
    injection into the position embedding, and before the layer of the first object head, which
    reads them (chapters 10, 11).

    Raises ValueError for fewer than four prompts, or a model that never obeys a relation.
    """
    discovery, held_out = discovery_and_test(model, prompts, per_prompt, seed)
    circuit = find_circuit(model, discovery)
    mean = mean_outputs(model, prompt_set("264")) if mean is None else mean
    options: dict[str, Any] = {"per_prompt": per_prompt, "seed": seed, "progress": progress}
    tested = tests(model, held_out, circuit.heads, mean, **options)
    sets = {role: getattr(circuit, role) for role in CIRCUIT_ROLES}
    together = ablate(model, held_out, sets, mean=mean, **options)
    moved, read = injected(model, held_out, circuit.relation, circuit.object, **options)
    return {"prompts": len(held_out), "discovery_prompts": len(discovery),
            "images_per_prompt": per_prompt, "seed": seed,
            "circuit": {role: [head_name(*h) for h in heads] for role, heads in sets.items()},
            "heads": len(heads_of(model)), "found": records(circuit.trace.drop(columns="head")),
            "tests": {m: records(shares(tested, m).rename_axis("condition"))
                      for m in ("loose", "shape", "unique_binding")},
            "without": records(effects(together, OUTCOMES)),
            "injection": metric_means(moved, "condition"),
            "injection_at_reader": metric_means(read, "condition")}


def injected(model: Model, prompts: Sequence[str], relation: Heads, readers: Heads,
             **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What relation heads write for the opposite relation, injected into the position embedding,
    and before the layer of the first reader; frames of `steer`. Raises as it does."""
    targets = REVERSE[relations_said(prompts)].tolist()
    vectors = relation_vectors(model, prompt_set("264"), relation)[:, EARLY_STEPS].mean(1)
    first, read = (steer(model, prompts, targets, vectors, (0, 1), layer=layer, **options)
                   for layer in (0, injection_layer(readers)))
    return first, read


def run_curves(model: Model, prompts: Sequence[str], seed: int = 1, orders: int = 12,
               progress: bool = False) -> dict:
    """How good each ranking of heads is: faithfulness over circuit size, CPR, CMD, ordered
    weakening and completeness, beside random orders; the same by three kinds of ablation, each with
    random orders of its own kind; and what each member of the smallest faithful circuit is worth
    (chapter 11).

    Heads are ranked on every fourth prompt and tested on the rest. Raises ValueError for fewer than
    four prompts, no random order, or a model that never obeys a relation.
    """
    if orders < 1:
        raise ValueError(f"{orders} random orders; curves need at least one")
    discovery, held_out = discovery_and_test(model, prompts, 1, seed)
    found = curves.rankings(model, discovery, seed)
    sizes = curves.curve_sizes(len(heads_of(model)))
    mean = mean_outputs(model, prompt_set("264"))
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    drawn = curves.random_orders(model, orders, seed)
    ours = curves.keep_and_remove(model, held_out, found, sizes, "mean", mean, **options)
    frames: dict[str, pd.DataFrame] = {"mean": ours}
    one = {"patching": found["patching"]}
    for kind in ("zero", "resample"):
        frames[kind] = curves.keep_and_remove(model, held_out, one, sizes, kind, **options)
    tables, by_kind, members = {}, [], []
    for kind, frame in frames.items():
        told: dict[str, Any] = {"kind": kind, "mean": mean if kind == "mean" else None}
        null = curves.keep_and_remove(model, held_out, drawn, sizes, ways=("keep",), **told,
                                      **options)
        tables[kind], numbers = curves.faithfulness(pd.concat([frame, null[null["order"] != ""]]))
        by_kind.append(numbers.assign(kind=kind))
        circuit = one["patching"][:curves.circuit_size(tables[kind], "patching")]
        worth = curves.minimality(model, held_out, circuit, **told, **options)
        members.append(worth.assign(kind=kind, size=len(circuit)))
    kinds = pd.concat(by_kind)
    return {"prompts": len(held_out), "discovery_prompts": len(discovery), "seed": seed,
            "random_circuits": orders * len([k for k in sizes if 0 < k < sizes[-1]]),
            "rankings": {m: [head_name(*h) for h in order] for m, order in found.items()},
            "curves": records(tables["mean"]),
            "numbers": records(by_kind[0].drop(columns="kind")),
            "kinds": records(kinds[kinds["order"].isin(["patching", "random"])]),
            "minimality": records(pd.concat(members))}
