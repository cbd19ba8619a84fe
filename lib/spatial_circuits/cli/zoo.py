"""Commands about many models: what there is, what each says of the claims, and how often."""
from dataclasses import asdict
from typing import Annotated

import typer

from ..files import write_json
from ..model.manifest import check_table
from .options import Json

Folders = Annotated[list[str], typer.Argument(metavar="MODEL...", help="names of models, or "
                                              "folders")]


def _judge(context: typer.Context, model: str, json: Json = None) -> None:
    """What a model's tables say about the claims."""
    if json:
        check_table(json)
    from ..claims.claims import verdicts
    from ..model.store import find_model
    folder = find_model(model)
    found = verdicts(folder)
    for claim, e in found.items():
        print(f"{claim:4} {e.status}: {e.ours}")
    if json:
        write_json(json, {"model": model, "command": context.obj,
                          "claims": {c: {**asdict(e), "status": e.status}
                                     for c, e in found.items()}})


def _population(context: typer.Context, models: Folders, json: Json = None) -> None:
    """How often each claim holds over training runs, with Wilson's intervals; order of learning."""
    if json:
        check_table(json)
    import pandas as pd

    from ..claims.population import population_record
    from ..model.store import find_model
    record = population_record([find_model(m) for m in models])
    for title, name in (("claims: k of n runs", "claims"),
                        ("relation read from: k of n runs", "reading_counts"),
                        ("learned in the paper's order (C2): k of n runs", "order_counts"),
                        ("images until each score is learned", "order")):
        if record[name]:
            print(f"\n{title}\n{pd.DataFrame(record[name]).round(3).to_string(index=False)}")
    if json:
        write_json(json, {"command": context.obj, **record})


def _card(model: str) -> None:
    """Write a model's card, README.md in its folder, and take its tables into the manifest."""
    from ..claims.cards import write_card
    from ..model.store import find_model
    print(f"wrote {write_card(find_model(model))}")


def _models() -> None:
    """List the models by name: what each is, and what it does."""
    from ..claims.cards import zoo
    rows = zoo()
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())


ZOO = (_models, _card, _judge, _population)
