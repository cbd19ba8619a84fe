"""Folding: on a page the code that a reader does not need is folded; in JupyterLab all is open.

Open stays what does the chapter's work: a cell that calls the library's data, texts, models,
training, hooks or analyses, or keeps a slow result (`records`). Folded is what imports, tabulates,
draws or words. A page that teaches code keeps it all open, by a line in its twin's header:
``jupyter: {spatial_circuits: {folds: false}}``.
"""
import ast
import json
import re
from collections.abc import Sequence

WORK = re.compile(r"spatial_circuits\.(data|text|model|training|hooks|analyses)\b")
HELPERS = ("spatial_circuits.analyses.heads", "spatial_circuits.analyses.intervals")
SPOKEN = ("Markdown", "verdict", "claim_verdict")


def folded(cells: Sequence[str]) -> list[bool]:
    """Whether each of a notebook's code cells is folded. What is no plain Python stays open."""
    trees = [_parsed(cell) for cell in cells]
    work = {"records"}
    for node in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)):
        if WORK.match(node.module or "") and node.module not in HELPERS:
            work |= {alias.asname or alias.name for alias in node.names}
    return [bool(tree.body) and (_prepares_or_words(tree) or not work & _called(tree))
            for tree in trees]


def fold(app, page: str, source: list[str]) -> None:
    """Before Sphinx reads a notebook: tag the cells that are folded, as MyST-NB has it."""
    if not str(app.env.doc2path(page)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    if not notebook["metadata"].get("spatial_circuits", {}).get("folds", True):
        return
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, hidden in zip(cells, folded(["".join(cell["source"]) for cell in cells])):
        tags = cell["metadata"].setdefault("tags", [])
        if hidden and "remove-input" not in tags:
            tags.append("hide-input")
    source[0] = json.dumps(notebook)


def _parsed(cell: str) -> ast.Module:
    try:
        return ast.parse(cell)
    except SyntaxError:  # a magic of IPython
        return ast.Module([], [])


def _prepares_or_words(tree: ast.Module) -> bool:
    """Whether a cell imports, or ends in words."""
    last = tree.body[-1]
    value = last.value if isinstance(last, ast.Expr) else None
    worded = isinstance(value, ast.Call) and getattr(value.func, "id", "") in SPOKEN
    return worded or any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)


def _called(tree: ast.Module) -> set[str]:
    """Names that are called, or whose attributes are; `records.report()` only tells."""
    heads = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    direct = {head.id for head in heads if isinstance(head, ast.Name)}
    owners = [head.value for head in heads if isinstance(head, ast.Attribute)]
    return direct | {owner.id for owner in owners if isinstance(owner, ast.Name)} - {"records"}
