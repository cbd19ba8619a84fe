"""The book's own notebooks: they run, their outputs are current, and the rendered pages hold together."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_circuits.book import notebooks
from spatial_circuits.book.execute import environment
from spatial_circuits.book.runner import (
    NotebookError,
    check_book,
    check_parameters,
    pages,
    run_book,
    toc,
)

TOP = Path(__file__).resolve().parents[1]
BOOK = TOP / "book"
NAMES = pages(BOOK)
CHECKED = [name for name in NAMES if "nbval-check-output" in (BOOK / f"{name}.py").read_text()]
LONGEST = 10  # lines of a function in a notebook; what is longer belongs into the library


def ipynb(name: str):
    return notebooks.load_notebook(BOOK / f"{name}.ipynb")


def code(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(nb, tag: str) -> list:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def test_every_notebook_is_in_the_table_of_contents():
    assert sorted(toc(BOOK)) == sorted(path.stem for kind in ("*.py", "*.md") for path in BOOK.glob(kind))
    assert sorted(NAMES) == sorted(path.stem for path in BOOK.glob("*.py"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a quick run of all notebooks, two at a time, and how it failed if it did."""
    out = tmp_path_factory.mktemp("smoke")
    try:
        run_book(BOOK, out_dir=out, scale="smoke", jobs=2)
    except NotebookError as error:
        return out / "book", str(error)
    return out / "book", "it was not run"


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_smoke_scale(name, smoke):
    folder, failure = smoke
    assert (folder / f"{name}.ipynb").exists(), failure
    assert not notebooks.stale(notebooks.load_notebook(folder / f"{name}.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_its_outputs_are_those_of_its_text_twin(name):
    assert check_book(BOOK, [name]) == [BOOK / f"{name}.ipynb"]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_run_in_order_without_an_error(name):
    cells = code(ipynb(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebooks.failed_cell(ipynb(name)) is None


@pytest.mark.parametrize("name", NAMES)
def test_it_declares_its_parameters(name):
    path = BOOK / f"{name}.ipynb"
    values = {"model": "rte", "seed": 1, "scale": "smoke"}
    assert len(tagged(notebooks.load_notebook(path), "parameters")) == 1
    assert check_parameters({name: path}, values) == {name: values}
    with pytest.raises(ValueError, match="expected int"):
        check_parameters({name: path}, {"seed": "one"})
    with pytest.raises(ValueError, match="expected one of smoke, full"):
        check_parameters({name: path}, {"scale": "huge"})


@pytest.mark.parametrize("name", NAMES)
def test_its_functions_are_short(name):
    for cell in code(ipynb(name)):
        lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.split("\n")]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < LONGEST, f"{node.name} has over {LONGEST} lines"


FULL = 6    # words: what is shorter names something, and is no sentence


def conditional_prose(source: str) -> list[str]:
    """Where a sentence is chosen by a condition, or a condition stands within a text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        chosen = []
        if isinstance(node, ast.JoinedStr):
            found += [ast.unparse(x) for x in ast.walk(node) if isinstance(x, ast.IfExp)]
        elif isinstance(node, ast.IfExp):
            chosen = [node.body, node.orelse]
        elif isinstance(node, ast.If):
            chosen = [x.value for x in [*node.body, *node.orelse] if isinstance(x, (ast.Assign, ast.AugAssign))]
        elif isinstance(node, ast.Dict) and any(isinstance(k, ast.Constant) and isinstance(k.value, bool) for k in node.keys):
            chosen = node.values
        found += [ast.unparse(x) for x in chosen if said(x) >= (3 if isinstance(node, ast.Dict) else FULL)]
    return found


def said(node: ast.AST) -> int:
    """Words of a text that stands there as it is."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return sum(len(p.value.split()) for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str))


@pytest.mark.parametrize("source", [
    "Markdown(f\"It {'holds' if x else 'does not hold'}.\")", "so = 'So it is the word that is read.' if x else ''",
    "so = ''\nif x:\n    so = f'So it is the word {y} that is read.'", "word = {True: 'holds', False: 'does not hold'}"])
def test_a_sentence_from_a_condition_is_found(source):
    assert conditional_prose(source)


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_is_built_from_a_condition(name):
    """What holds for any run is written out; what may turn out otherwise is a verdict, set apart."""
    assert conditional_prose((BOOK / f"{name}.py").read_text()) == []


@pytest.mark.parametrize("name", CHECKED)
def test_its_tagged_numbers_have_not_drifted(name):
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "--rootdir", str(TOP)]
    options = ["--nbval-cell-timeout", "900", "--nbval-sanitize-with", str(TOP / "tests" / "nbval.cfg")]
    result = subprocess.run([*command, *options, str(BOOK / f"{name}.ipynb")], env=environment(), cwd=BOOK,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
