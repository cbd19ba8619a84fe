"""Symbols: every letter of a formula is explained in the glossary, and has one meaning but where that is said."""
import re
from pathlib import Path

import pytest

from spatial_circuits.book.runner import pages

BOOK = Path(__file__).resolve().parents[1] / "book"
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.S)
NAMED = re.compile(r"\\(?:text|textit|mathrm|operatorname)\{[^}]*\}")
WEIGHT = re.compile(r"(?<![A-Za-z\\])([Wb])_\{?[qkvo]\}?")  # q, k, v and o say which weight
SYMBOL = re.compile(r"(?:\\(hat|bar|tilde|mathcal|mathbb)\b\s*\{?\s*)?(\\[a-zA-Z]+|[A-Za-z])\}?'*(_|\^h_)?")
GREEK = set(re.findall(r"\\\w+", r"\alpha \beta \gamma \delta \Delta \varepsilon \eta \theta \kappa \lambda \mu \nu \pi \Pi "
                                r"\rho \sigma \tau \chi \phi \ell"))
REUSED = {"04_training": {"h", "k"}, "09_ablation": {"e"}, "10_injection": {"k"}, "11_circuit": {"e"},
          "14_factors": {"k"}}  # the letters that the figures of these chapters show


def letters(formula: str) -> list[str]:
    """Letters of a formula as "accent letter_", with the underscore where they have an index."""
    formula = WEIGHT.sub(r"\1_ ", NAMED.sub("", formula))
    return [f"{accent} {base}{'_' if index else ''}".strip() for accent, base, index in SYMBOL.findall(formula)
            if len(base) == 1 or base in GREEK]


def used(name: str) -> set[str]:
    """The letters in the formulas of a page's text."""
    text = "\n".join(line[2:] for line in (BOOK / f"{name}.py").read_text().split("\n") if line.startswith("# "))
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return {x for display, inline in FORMULA.findall(text) for x in letters(display or inline)}


def tables() -> tuple[list[str], dict[str, list[str]]]:
    """The symbols of all chapters, and of each one alone."""
    everywhere, _, local = (BOOK / "glossary.md").read_text().partition("## Symbols")[2].partition("| chapter |")
    common = [letters(f)[0] for row in re.findall(r"^\| (\$.+?\$) \|", everywhere, re.M)
              for f in re.findall(r"\$([^$]+)\$", row)]
    rows = re.findall(r"^\| \[\d+\]\((\w+)\.ipynb\) \| (.+) \|$", local, re.M)
    return common, {name: [letters(f)[0] for f in re.findall(r"\$([^$]+)\$", row)] for name, row in rows}


COMMON, LOCAL = tables()


def test_letters_of_a_formula_are_found():
    assert letters(r"\hat v_c = \frac{W_q x + b_q}{\sqrt d} \text{ of } A^h_{ij}") == [
        "hat v_", "c", "W_", "x", "b_", "d", "A_", "i", "j"]


def test_a_symbol_has_one_meaning():
    assert len(COMMON) > 40
    for symbols in (COMMON, *LOCAL.values()):
        assert len(symbols) == len(set(symbols))
    again = {name: set(symbols) & set(COMMON) for name, symbols in LOCAL.items()}
    assert {name: found for name, found in again.items() if found} == REUSED


@pytest.mark.parametrize("name", pages(BOOK))
def test_every_letter_of_a_formula_is_explained(name):
    assert used(name) - set(COMMON) - set(LOCAL.get(name, ())) == set()


@pytest.mark.parametrize("name", LOCAL)
def test_a_chapter_uses_the_symbols_that_are_said_to_be_its_own(name):
    assert set(LOCAL[name]) - used(name) == set()
