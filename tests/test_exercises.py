"""Exercises at the ends of chapters: the hidden solutions run, check themselves, and can fail."""
import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from spatial_circuits.book import notebooks
from spatial_circuits.book.runner import pages
from spatial_circuits.model.transformer import build_transformer

BOOK = Path(__file__).resolve().parents[1] / "book"
SOLUTION = re.compile(r":::\{admonition\} Solution\n:class: dropdown\n\n```python\n(.*?)\n```\n\n(.+?)\n:::", re.S)
UNTRAINED = ("04_training", "05_evaluation", "06_synopsis", "07_relation_head", "09_ablation", "10_injection", "11_circuit", "13_which_token")


def cells(name: str) -> list:
    return notebooks.load_notebook(BOOK / f"{name}.ipynb").cells


def solutions(name: str) -> list[str]:
    """The code of a page's solutions."""
    text = [c.source for c in cells(name) if c.cell_type == "markdown"]
    return [code for code, _ in SOLUTION.findall("\n".join(text))]


SOLVED = {name: solutions(name) for name in pages(BOOK) if solutions(name)}


def opened(name: str, monkeypatch) -> dict:
    """The names of a chapter once its parameters, at smoke scale, and its imports were run."""
    monkeypatch.chdir(BOOK)
    names: dict = {}
    first, second = [c.source for c in cells(name) if c.cell_type == "code"][:2]
    exec(first, names)
    names["scale"] = "smoke"
    exec(second, names)
    return names


def test_most_chapters_have_an_exercise():
    assert len(SOLVED) >= 8
    for name in pages(BOOK):  # one that is not taken apart by the pattern would not be tested
        text = "\n".join(c.source for c in cells(name))
        assert text.count("## Exercise") == text.count("{admonition} Solution") == len(solutions(name)), name


@pytest.mark.parametrize("name", SOLVED)
def test_a_solution_runs_and_checks_itself(name, monkeypatch):
    for code in SOLVED[name]:
        assert max(map(len, code.split("\n"))) <= 88
        checks = [node.test for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
        assert checks and all(any(isinstance(x, ast.Name) for x in ast.walk(c)) for c in checks)
        exec(code, opened(name, monkeypatch))


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_is_said_of_a_model_fails_for_an_untrained_one(name, monkeypatch):
    names = opened(name, monkeypatch)
    fresh = build_transformer("tiny", names["net"].encoder.dim, 0).eval()
    blank = replace(names["net"], transformer=fresh)
    names |= dict.fromkeys(("net", "quick", "fast"), blank) | {"dit": fresh}
    with pytest.raises((AssertionError, ValueError)):
        exec(SOLVED[name][0], names)
