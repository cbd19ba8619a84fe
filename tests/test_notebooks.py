"""The book's own notebooks: they run, their outputs are current, and the rendered pages hold together."""

import ast
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, ignore_patterns
from urllib.parse import unquote, urlsplit

import pytest

from spatial_circuits import notebooks
from spatial_circuits.book import check_book, check_parameters, environment, pages, render, run_book, toc

TOP = Path(__file__).resolve().parents[1]
BOOK = TOP / "book"
NAMES = pages(BOOK)
CHECKED = [name for name in NAMES if "nbval-check-output" in (BOOK / f"{name}.py").read_text()]
LONGEST = 10  # lines of a function in a notebook; what is longer belongs into the library


def ipynb(name: str):
    return notebooks.load(BOOK / f"{name}.ipynb")


def code(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(nb, tag: str) -> list:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def test_every_notebook_is_in_the_table_of_contents():
    assert sorted(toc(BOOK)) == sorted(path.stem for path in BOOK.glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_smoke_scale(name, tmp_path):
    [path] = run_book(BOOK, out_dir=tmp_path, names=[name], scale="smoke", jobs=1)
    assert not notebooks.stale(notebooks.load(path))


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
    assert len(tagged(notebooks.load(path), "parameters")) == 1
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


@pytest.mark.parametrize("name", CHECKED)
def test_its_tagged_numbers_have_not_drifted(name):
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "--rootdir", str(TOP)]
    options = ["--nbval-cell-timeout", "900", "--nbval-sanitize-with", str(TOP / "tests" / "nbval.cfg")]
    result = subprocess.run([*command, *options, str(BOOK / f"{name}.ipynb")], env=environment(), cwd=BOOK,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]


class Page(HTMLParser):
    """The links and anchors of an HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src", "data") if found.get(key)]
        if tag == "meta" and (found.get("http-equiv") or "").lower() == "refresh":
            self.links.append(found["content"].partition("url=")[2])


def broken(site: Path) -> list[str]:
    """Links of a folder of HTML pages to a file or an anchor that is not there, as "page -> link"."""
    read = {path.resolve(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    return [f"{path.name} -> {link}" for path, page in read.items() for link in page.links
            if not resolves(link, path, read)]


def resolves(link: str, path: Path, read: dict[Path, Page]) -> bool:
    """Whether an internal link leads somewhere; links to other hosts and inline data are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return False
    return not parts.fragment or target not in read or unquote(parts.fragment) in read[target].anchors


def test_the_link_check_finds_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y"><a href="#x"><a href="#no">'
                                     '<img src="no.png"><a href="http://no.example"><a href="b.html#no">')
    (tmp_path / "b.html").write_text('<p id="y"><meta http-equiv="Refresh" content="0; url=no.html">')
    assert sorted(broken(tmp_path)) == ["a.html -> #no", "a.html -> b.html#no", "a.html -> no.png",
                                        "b.html -> no.html"]


@pytest.mark.skipif(not NAMES, reason="no notebooks")
def test_the_book_builds_without_a_warning_and_its_links_resolve(tmp_path):
    for file in TOP.glob("_*.yml"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    copytree(BOOK, tmp_path / "book", ignore=ignore_patterns("*.partial.ipynb", ".*"))
    index = render(tmp_path)
    assert index.is_file() and all((index.parent / "book" / f"{name}.html").is_file() for name in NAMES)
    assert broken(index.parent) == []
