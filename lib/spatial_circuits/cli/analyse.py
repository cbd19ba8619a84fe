"""Commands that measure a model: the tables of chapters 5 to 15, printed and written as JSON."""
from pathlib import Path
from typing import Annotated, Literal

import typer

from .factory import analysis, first_prompts
from .options import (
    AnyHeads,
    ChunksFolder,
    Count,
    HeadNames,
    LocatorName,
    PerPrompt,
    SeedOption,
    open_model,
)


def _evaluate(net, prompts, images_per_prompt: PerPrompt = 4, seed: SeedOption = 1,
              mode: Annotated[Literal["clean", "paper"], typer.Option(
                  help="detector's mode")] = "clean",
              compile: Annotated[bool, typer.Option("--compile", help="compile the model first: "
                  "half a minute, pays from some two thousand pictures")] = False):
    """Sample and score a model on a prompt set (chapter 5)."""
    from ..analyses.evaluation import evaluate, report
    from ..claims.tables import require_scored
    from ..model.compiling import compiled
    if compile and hasattr(net, "edits"):
        raise ValueError("--compile leaves no place for the hooks of --edit; leave one of them out")
    require_scored(net, prompts)
    if compile:
        net = compiled(net, prompts)
    metrics = report(evaluate(net, prompts, images_per_prompt, seed, mode, progress=True), mode)
    print(f"{net.name}: {len(prompts)} prompts x {images_per_prompt} images, "
          "95 % interval over prompts")
    for name, m in metrics.items():
        interval = f"[{m['low']:.3f}, {m['high']:.3f}]"
        print(f"  {name:15} {m['mean']:.3f} {interval}  ceiling {m['ceiling']:.3f}")
    return {"prompts": len(prompts), "images_per_prompt": images_per_prompt, "seed": seed,
            "mode": mode, "metrics": metrics}


def _synopsis(net, prompts, images_per_prompt: PerPrompt = 4, seed: SeedOption = 1,
             step: Annotated[str, typer.Option(help="a step's number, mean or max")] = "mean",
             locator: LocatorName = None, chunks: ChunksFolder = None):
    """Attention from objects to words, head by head (chapter 6)."""
    from ..claims.tables import run_synopsis
    when = int(step) if step.lstrip("-").isdecimal() else step
    located = _locate(net, locator, chunks)
    record = run_synopsis(net, prompts, images_per_prompt, seed, when, progress=True, **located)
    best = _frame(record["heads"]).groupby("score", sort=False).head(6)
    print(best.round(4).to_string(index=False))
    return record


def _locate(net, locator: str | None, chunks: Path | None) -> dict:
    """The locator of that name, and the folder of chunks; without a name our detector, or none for
    a model of the book's size, whose analyses need none. ValueError for chunks then."""
    from ..analyses.chunks import Chunks
    from ..analyses.locate import locator_identity, named_locator
    from ..data.scenes import GRID
    if locator is None and net.transformer.config["sample_size"] == 2 * GRID:
        if chunks:
            raise ValueError("--chunks is for analyses with a locator; add --locator detector")
        return {"locate": None}
    name = locator or "detector"
    kept = Chunks(chunks, locator=locator_identity(name)) if chunks else None
    return {"locate": named_locator(name), "chunks": kept}


def _screen(net, prompts, chunks: ChunksFolder = None):
    """Ramps that direction words draw, from the weights alone (chapter 7)."""
    from ..analyses.chunks import Chunks
    from ..claims.tables import run_screen
    record = run_screen(net, prompts, Chunks(chunks))
    _pivot(record["heads"], ["name"], "word", "cosine", digits=2)
    return record


def _ablate(
    net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1,
    heads: AnyHeads = None,
    together: Annotated[bool, typer.Option("--together", help="the heads as one set")] = False,
    kind: Annotated[Literal["mean", "zero"] | None, typer.Option(
        help="default: mean; zero, the only one, with a locator")] = None,
    role: Annotated[str | None, typer.Option(help="hide this role's tokens from the heads "
                                                "instead: shape1, relation, ...")] = None,
    when: Annotated[list[int] | None, typer.Option(metavar="STEP ...", help="only at these "
                                                      "sampling steps")] = None,
    locator: LocatorName = None, chunks: ChunksFolder = None,
):
    """What fails without each head (chapter 9)."""
    from ..claims.tables import run_ablate
    record = run_ablate(net, prompts, images_per_prompt, seed, heads or [], together, kind, role,
                        when or None, progress=True, **_locate(net, locator, chunks))
    _pivot(record["effects"], ["condition"], "metric", "change")
    return record


def _patch(net, prompts, seed: SeedOption = 1, heads: AnyHeads = None,
           every: Annotated[int, typer.Option(min=1, help="at every so many steps")] = 1,
           batch: Annotated[int, typer.Option(min=3, help="rows predicted at once, the prompt and "
                                              "its counterpart among them")] = 16,
           chunks: ChunksFolder = None):
    """How much of the relation each head carries, by what any model predicts (chapter 9)."""
    from ..analyses.chunks import Chunks
    from ..claims.placed_tables import run_patch
    record = run_patch(net, prompts, seed, heads or [], every, batch, progress=True,
                       chunks=Chunks(chunks))
    print(_frame(record["heads"]).head(12).round(4).to_string(index=False))
    return record


def _inject(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1,
            heads: Annotated[list[str] | None, typer.Option(
                metavar="L0H0 ...", help="whose mean output is written in; at least one")] = None,
            scale: Annotated[float, typer.Option(help="times which it is added")] = 1.0,
            layer: Annotated[int | None, typer.Option(
                help="before which it is added; default: after the last of the heads")] = None,
            means_from: Annotated[Path | None, typer.Option(
                metavar="FILE", help="further prompts, one a line, of which means are taken; "
                "default: of the half of the prompts that is not scored with them")] = None,
            locator: LocatorName = None, chunks: ChunksFolder = None):
    """Write the opposite relation into any model's pictures, as heads write it (chapter 10)."""
    from ..claims.placed_tables import run_inject
    located = _locate(net, locator or "detector", chunks)
    others = None if means_from is None else first_prompts("", None, file=means_from)
    record = run_inject(net, prompts, heads or [], scales=[scale], layer=layer,
                        per_prompt=images_per_prompt, seed=seed, progress=True, means_from=others,
                        **located)
    _pivot(record["effects"], ["condition"], "metric", "mean")
    return record


def _circuit(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1):
    """Find the circuit, test it, and inject relations (chapters 10 and 11)."""
    from ..claims.tables import run_circuit
    record = run_circuit(net, prompts, images_per_prompt, seed, progress=True)
    print(", ".join(f"{role}: {' '.join(heads)}" for role, heads in record["circuit"].items()))
    print(_frame(record["tests"]["loose"]).round(3).to_string(index=False))
    return record


def _curves(net, prompts, seed: SeedOption = 1, orders: Count = 12):
    """How good each ranking of heads is, by faithfulness over circuit size (chapter 11)."""
    from ..claims.tables import run_curves
    record = run_curves(net, prompts, seed, orders, progress=True)
    _pivot(record["numbers"], ["order"], "number", "value")
    return record


def _factors(net, prompts, permutations: Count = 1000):
    """What a token's embedding holds, and which heads read it (chapters 13 and 14)."""
    from ..claims.text_tables import run_factors
    record = run_factors(net, prompts, permutations)
    partition = _frame(record["partition"]).set_index(["token", "stage", "factor"])
    print(partition.round(3).to_string())
    best = _frame(record["heads"]).groupby("token", sort=False).head(3)
    print(best.round(3).to_string(index=False))
    return record


def _tokens(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1):
    """What fails without each word, by steps (chapter 13)."""
    from ..claims.text_tables import run_tokens
    record = run_tokens(net, prompts, images_per_prompt, seed, progress=True)
    _pivot(record["effects"], ["condition"], "metric", "mean")
    return record


def _arithmetic(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1):
    """Move objects by changing one token's embedding (chapter 14)."""
    from ..claims.text_tables import run_arithmetic
    record = run_arithmetic(net, prompts, images_per_prompt, seed, progress=True)
    _pivot(record["moved"], ["token", "vector", "k"], "metric", "mean")
    return record


def _subspaces(net, prompts, seed: SeedOption = 1, iterations: Count = 80,
               other: Annotated[str | None, typer.Option(
                   help="a model with the same encoder, in which tokens' subspaces are tested, "
                        "too")] = None):
    """In how many dimensions words and the object head's query hold the relation (chapter 14)."""
    from ..claims.tables import require_scored
    from ..claims.text_tables import run_subspaces
    require_scored(net, prompts, predictions=True)
    second = open_model(other, str(net.device)) if other else None
    record = run_subspaces(net, prompts, seed, iterations, other=second, progress=True)
    _pivot(record["effects"], ["part", "site", "subspace"], "tested", "mean")
    _pivot(record["pictures"], ["part", "site"], "subspace", "share")
    return record


def _robustness(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1):
    """Other wordings, the shifts they cause, and repairs (chapter 15)."""
    from ..claims.text_tables import run_robustness
    record = run_robustness(net, prompts, images_per_prompt, seed, progress=True)
    _pivot(record["effects"], ["condition"], "metric", "mean")
    return record


def _exchange(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1):
    """Which words carry axis and side of the relation (chapter 17)."""
    from ..claims.text_tables import run_exchange
    record = run_exchange(net, prompts, images_per_prompt, seed, progress=True)
    told = [r for r in record["table"] if r["kind"] != "own"]
    _pivot(told, ["kind", "tokens"], "part", "share")
    return record


def _edges(net, prompts, seed: SeedOption = 1, relation: HeadNames = None,
           readers: HeadNames = None, draws: Count = 1000):
    """Which component hands the relation to which, and what carries the tag (chapter 11)."""
    from ..claims.path_tables import run_edges
    record = run_edges(net, prompts, seed, relation or [], readers or [], draws)
    print(f"{record['passed']} of {record['count']} edges pass")
    print(_frame(record["edges"]).head(20).round(4).to_string(index=False))
    for one in record["readers"]:
        print(f"\nto the query of {one['reader']}:")
        print(_frame(one["ways"]).round(3).to_string(index=False))
    return record


def _fused(net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1,
           tokens: Annotated[list[str] | None, typer.Option(
               metavar="ROLE ...", help="default: shape2 relation")] = None,
           draws: Count = 100):
    """Which heads read the relation from a token, and what they turn alone (chapter 16)."""
    from ..claims.path_tables import run_fused
    chosen = tuple(tokens or ("shape2", "relation"))
    record = run_fused(net, prompts, images_per_prompt, seed, chosen, draws, progress=True)
    for one in record["readings"]:
        print(f"{one['tokens']}: {', '.join(row['name'] for row in one['found'])}")
        print(_frame(one["turned"]).round(3).to_string(index=False))
    return record


def _frame(rows: list[dict]):
    import pandas as pd
    return pd.DataFrame(rows)


def _pivot(rows: list[dict], index: list[str], columns: str, values: str, digits: int = 3) -> None:
    table = _frame(rows).pivot(index=index, columns=columns, values=values)
    print(table.round(digits).to_string())


ANALYSES = (
    analysis(_evaluate, fast=False), analysis(_synopsis, spread=True, prompts="96"),
    analysis(_screen, spread=True), analysis(_ablate, spread=True),
    analysis(_patch, spread=True, limit=32), analysis(_inject, spread=True, limit=32),
    analysis(_circuit, spread=True), analysis(_curves, spread=True, limit=32),
    analysis(_tokens, limit=88), analysis(_factors), analysis(_arithmetic, limit=22),
    analysis(_subspaces, limit=66), analysis(_robustness), analysis(_exchange, limit=88),
    analysis(_edges, spread=True, limit=64), analysis(_fused, limit=32))
