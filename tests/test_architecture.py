"""The house: imports run one way, a name has one home, modules stay small, lines can be read."""
import ast
import collections
from pathlib import Path

import pytest

from spatial_circuits.book import architecture

MODULES = architecture.modules()
BOOK = architecture.LIBRARY.parents[1] / "book"


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def public(name: str) -> list[str]:
    """Names that a module defines at its top level and does not hide."""
    found = []
    for node in tree(name).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        found += [x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)]
    return [n for n in dict.fromkeys(found) if not n.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_layers_below_its_own(name):
    own = architecture.depth(name.split(".")[0])
    for target in architecture.imports(name, MODULES[name].read_text()):
        assert architecture.depth(target) < own, f"{name} imports from {target}"


@pytest.mark.parametrize(("source", "found"), [
    ("from ..claims import judges", {"claims"}), ("from .. import claims", {"claims"}),
    ("def f():\n    from ..book.runner import toc", {"book"}), ("from .sweep import sweep", set()),
    ("from spatial_circuits.cli import main", {"cli"}), ("import torch", set())])
def test_every_way_of_importing_is_seen(source, found):
    assert architecture.imports("analyses.ablation", source) == found


def test_no_module_imports_the_library_by_plain_import():
    for name in MODULES:
        plain = [a.name for n in ast.walk(tree(name)) if isinstance(n, ast.Import) for a in n.names]
        assert not [p for p in plain if p.startswith("spatial_circuits")], name


def test_each_public_name_lives_in_one_place():
    homes = collections.defaultdict(list)
    for name in MODULES:
        for public_name in public(name):
            homes[public_name].append(name)
    assert {n: h for n, h in homes.items() if len(h) > 1} == {}


def test_modules_are_small_and_their_lines_fit():
    assert {n: len(p.read_text().splitlines()) for n, p in MODULES.items()
            if len(p.read_text().splitlines()) >= 300} == {}
    wide = {n: [i for i, line in enumerate(p.read_text().splitlines(), 1) if len(line) > 100]
            for n, p in MODULES.items()}
    assert {n: lines for n, lines in wide.items() if lines} == {}


def test_the_library_does_not_grow_unseen():
    """Lines of code: a reader pays for these; docstrings, comments and blank lines help him."""
    assert sum(map(code_lines, architecture.LIBRARY.rglob("*.py"))) <= 12_729


def code_lines(path: Path) -> int:
    """Lines that hold a statement other than a docstring, or a part of one."""
    text = path.read_text()
    tree = ast.parse(text)
    said = {line for node in ast.walk(tree) if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for line in range(node.lineno, node.end_lineno + 1)}
    kept = [line.strip() for i, line in enumerate(text.splitlines(), 1) if i not in said]
    return len([line for line in kept if line and not line.startswith("#")])


def test_a_docstring_is_not_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""What it is\n\nfor."""\n# why\n\nX = [1,\n     2]\n')
    assert code_lines(path) == 2


def test_code_in_notebooks_fits_the_page():
    wide = {p.name: [i for i, line in enumerate(p.read_text().splitlines(), 1)
                     if len(line) > 88 and not line.startswith("#")] for p in BOOK.glob("*.py")}
    assert {n: lines for n, lines in wide.items() if lines} == {}


def test_every_module_and_package_says_what_it_is():
    for path in architecture.LIBRARY.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_model_is_typed_wherever_it_is_one():
    untyped = []
    for name in MODULES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef) and not name.startswith("cli."):  # there: a name
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                untyped += [f"{name}.{node.name}" for a in arguments
                            if a.arg in ("model", "net") and a.annotation is None]
    assert untyped == []


def test_nothing_is_unpickled():
    unsafe = ("torch.load", "import pickle", "from pickle", "import joblib", "allow_pickle",
              "weights_only=False", "load_state(")
    for name, path in MODULES.items():
        found = [call for call in unsafe if call in path.read_text()]
        assert not found, f"{name}: {found}"


def test_the_picture_is_that_of_the_code():
    assert architecture.PICTURE.read_text() == architecture.svg(), (
        "run: python -m spatial_circuits.book.architecture")
