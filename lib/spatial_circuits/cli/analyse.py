"""Commands that measure a model: the tables of chapters 5 to 15, printed and written as JSON."""
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..files import check_file, write_json
from .options import (
    ChunksFolder,
    Count,
    Device,
    Dtype,
    EditFile,
    HeadNames,
    Json,
    Limit,
    LocatorName,
    Name,
    PerPrompt,
    Precise,
    Prompts,
    PromptsFile,
    SeedOption,
    open_model,
)


def _first(prompts: str, limit: int | None, spread: bool = False,
           file: Path | None = None) -> list[str]:
    """The first `limit` prompts of a set or a file, or as many spread over it."""
    from ..data.metrics import prompt_set
    lines = prompt_set(prompts) if file is None else file.read_text().splitlines()
    chosen = [line.strip() for line in lines if line.strip()]
    if not chosen:
        raise ValueError(f"{file} holds no prompt; write one a line")
    stride = max(1, len(chosen) // (limit or len(chosen))) if spread else 1
    return chosen[::stride][:limit]


def _analysis(run: Callable[..., dict], spread: bool = False, **defaults) -> Callable[..., None]:
    """The command that calls `run(model, prompts, ...)`, with the options that all analyses share.

    An analysis that samples (it takes a seed) also has `--precise` and `--edit`. `defaults` are
    those of the shared options; `spread`: a limit takes prompts from all over the set.
    """
    shared: dict[str, tuple] = {
        "model": (Name, "rte"), "prompts": (Prompts, "264"), "prompts_file": (PromptsFile, None),
        "limit": (Limit, None)}
    own = list(signature(run).parameters.values())[2:]
    if "seed" in signature(run).parameters:
        shared |= {"precise": (Precise, False), "edit": (EditFile, None)}

    def command(context, model, prompts, limit, json, device, prompts_file, dtype, precise=True,
                edit=None, **options) -> None:
        if json:
            check_file(json)
        if precise and dtype not in (None, "fp32") and "edit" in shared:
            raise ValueError(f"--precise is fp32; leave it out, or --dtype {dtype}")
        chosen = _first(prompts, limit, spread, prompts_file)
        net = open_model(model, device, precise, edit, dtype)
        record = run(net, chosen, **options)
        if json:
            write_json(json, {"model": net.name, "command": context.obj, **record})

    def option(name, kind, default) -> Parameter:
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    first = [option(name, kind, defaults.get(name, usual))
             for name, (kind, usual) in shared.items()]
    last = [option("json", Json, None), option("device", Device, "auto"),
            option("dtype", Dtype, None)]
    context = option("context", typer.Context, Parameter.empty)
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
    whole = signature(command).replace(parameters=[context, *first, *own, *last])
    setattr(command, "__signature__", whole)  # noqa: B010 (what Typer reads)
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    return command


def _evaluate(
    context: typer.Context, model: Name = "rte", prompts: Prompts = "264",
    images_per_prompt: PerPrompt = 4, seed: SeedOption = 1, limit: Limit = None,
    mode: Annotated[Literal["clean", "paper"], typer.Option(help="detector's mode")] = "clean",
    json: Json = None, device: Device = "auto", dtype: Dtype = None,
) -> None:
    """Sample and score a model on a prompt set (chapter 5)."""
    if json:
        check_file(json)
    net, chosen = open_model(model, device, dtype=dtype), _first(prompts, limit)
    from ..analyses.evaluation import evaluate, report
    metrics = report(evaluate(net, chosen, images_per_prompt, seed, mode, progress=True), mode)
    print(f"{net.name}: {len(chosen)} prompts x {images_per_prompt} images, "
          "95 % interval over prompts")
    for name, m in metrics.items():
        interval = f"[{m['low']:.3f}, {m['high']:.3f}]"
        print(f"  {name:15} {m['mean']:.3f} {interval}  ceiling {m['ceiling']:.3f}")
    if json:
        write_json(json, {"model": net.name, "prompts": prompts, "limit": limit,
                          "images_per_prompt": images_per_prompt, "seed": seed, "mode": mode,
                          "command": context.obj, "metrics": metrics})


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


def _screen(net, prompts):
    """Ramps that direction words draw, from the weights alone (chapter 7)."""
    from ..claims.tables import run_screen
    record = run_screen(net, prompts)
    _pivot(record["heads"], ["name"], "word", "cosine", digits=2)
    return record


def _ablate(
    net, prompts, images_per_prompt: PerPrompt = 1, seed: SeedOption = 1,
    heads: Annotated[list[str] | None, typer.Option(metavar="L0H0 ...", help="default: every "
                                                       "head, each alone")] = None,
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
    from ..claims.text_tables import run_subspaces
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
    _evaluate, _analysis(_synopsis, spread=True, prompts="96"), _analysis(_screen, spread=True),
    _analysis(_ablate, spread=True), _analysis(_circuit, spread=True),
    _analysis(_curves, spread=True, limit=32), _analysis(_tokens, limit=88),
    _analysis(_factors), _analysis(_arithmetic, limit=22),
    _analysis(_subspaces, limit=66), _analysis(_robustness), _analysis(_exchange, limit=88),
    _analysis(_edges, spread=True, limit=64), _analysis(_fused, limit=32),
)
