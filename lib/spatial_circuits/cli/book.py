"""The command that runs the book."""
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def _run_book(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NOTEBOOK]...", help="e.g. "
                     "04_training; default: all")] = None,
    book: Annotated[Path, typer.Option(help="folder of the notebooks")] = Path("book"),
    parameter: Annotated[list[str] | None, typer.Option(
        "-p", "--parameter", metavar="NAME=VALUE", help="for those that declare it")] = None,
    model: Annotated[str | None, typer.Option(help="short for -p model=...: the study of a "
                                                 "shipped model, or of a folder")] = None,
    scale: Annotated[Literal["smoke", "full"] | None,
                     typer.Option(help="short for -p scale=...")] = None,
    out: Annotated[Path | None,
                   typer.Option(help="default: _build/book, or _build/variants/...")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="refresh the outputs in the "
                                           "notebooks beside their text twins")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="notebooks that run at a time")] = 2,
    check: Annotated[bool, typer.Option("--check", help="run nothing; do the notebooks beside the "
                                        "text twins hold their outputs?")] = False,
    render: Annotated[bool, typer.Option("--render", help="build the HTML pages after")] = False,
) -> None:
    """Execute the book's notebooks."""
    from ..book.execute import skip_grammar
    from ..book.runner import NotebookError, build_pages, run_book
    from ..parameters import parse_parameters
    skip_grammar()
    values = parse_parameters(parameter or [])
    if model is not None:
        from ..model.store import find_model
        from ..model.store import names as shipped
        folder = find_model(model).resolve()  # notebooks run in another folder
        values["model"] = model if model in shipped() else str(folder)
    try:
        written = run_book(book, out, names or None, values, jobs, scale, check, in_place)
    except NotebookError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    print("current:" if check else "wrote", *written, sep="\n  ")
    if render and written:
        print(f"open {build_pages(written[0].parent)}")


RUNNING = (_run_book,)
