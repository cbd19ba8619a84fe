"""Which code a page folds."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from spatial_circuits.book import notebooks
from spatial_circuits.book.folding import fold, folded

BOOK = Path(__file__).parents[1] / "book"
IMPORTS = ("from spatial_circuits.analyses.ablation import ablate\nfrom spatial_circuits.analyses.heads import head_name\n"
           "from spatial_circuits.model import store\nnet = store.load('rte')")


@pytest.mark.parametrize("cell, hidden", [
    ("frame = ablate(net)\nframe", False), ("net = store.load('minilm')", False), ("found = records(mine, 3)", False),
    ("def share(m):\n    return ablate(m)", False),
    ("frame = ablate(net)\nMarkdown('so many')", True), ("verdict({'It holds': frame.all()})", True), ("import math\nablate(net)", True),
    ("from math import inf\nablate(net)", True), ("head_name(1, 3)", True), ("frame.round(2)", True), ("records.report()", True), ("seed = 0", True),
    ("ablate", True), ("%timeit ablate(net)", False), ("", False)])
def test_what_works_is_open_and_what_tells_is_folded(cell, hidden):
    assert folded([IMPORTS, cell]) == [True, hidden]


def read_by_sphinx(notebook: dict, file: str = "page.ipynb") -> dict:
    source = [json.dumps(notebook)]
    fold(SimpleNamespace(env=SimpleNamespace(doc2path=lambda page: f"book/{file}")), "book/page", source)
    return json.loads(source[0])


def test_cells_are_tagged_unless_the_page_keeps_them_open_or_drops_them():
    def cells(tags: list[str]) -> list[dict]:
        told = [("markdown", "words"), ("code", IMPORTS), ("code", "ablate(net)"), ("code", "1 + 1")]
        return [{"cell_type": kind, "source": text.splitlines(True), "metadata": {"tags": list(tags)} if tags else {}} for kind, text in told]
    def tags_of(notebook: dict) -> list:
        return [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    assert tags_of(read_by_sphinx({"metadata": {}, "cells": cells([])})) == [[], ["hide-input"], [], ["hide-input"]]
    assert tags_of(read_by_sphinx({"metadata": {}, "cells": cells(["remove-input"])})) == [["remove-input"]] * 4
    kept = {"metadata": {"spatial_circuits": {"folds": False}}, "cells": cells([])}
    assert read_by_sphinx(kept) == kept
    source = ["# words"]
    fold(SimpleNamespace(env=SimpleNamespace(doc2path=lambda page: "book/page.md")), "book/page", source)
    assert source == ["# words"]


def test_every_chapter_shows_work_and_most_of_its_lines_are_folded():
    opened, lines = {}, [0, 0]
    for path in BOOK.glob("*.ipynb"):
        nb = notebooks.load_notebook(path)
        cells = [cell.source for cell in nb.cells if cell.cell_type == "code"]
        if nb.metadata.get("spatial_circuits", {}).get("folds", True):
            opened[path.stem] = sum(not hidden for hidden in folded(cells))
            for cell, hidden in zip(cells, folded(cells)):
                lines[hidden] += len(cell.splitlines())
    assert {"tour", "change_one_thing"}.isdisjoint(opened)
    assert all(count for page, count in opened.items() if page[:2].isdigit() and page != "18_explorer")
    assert lines[0] < lines[1] / 2
