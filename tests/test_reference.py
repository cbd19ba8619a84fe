"""The reference names every module, in the order of the layers, and shows docstrings as they are."""
import pkgutil
import re
from pathlib import Path

import spatial_circuits
from spatial_circuits.book import architecture, sphinx

PAGE = (Path(__file__).resolve().parents[1] / "book" / "reference.md").read_text()
LAYERS = [package for layer in architecture.LAYERS for package in layer]


def listed() -> list[str]:
    return re.findall(r"^\.\. automodule:: spatial_circuits\.(\S+)$", PAGE, re.M)


def test_it_lists_every_module_once():
    found = pkgutil.walk_packages(spatial_circuits.__path__, "spatial_circuits.")
    modules = {m.name.removeprefix("spatial_circuits.") for m in found if not m.ispkg}
    commands = {name for name in modules if name.startswith("cli.")}  # `--help` is their reference
    assert sorted(listed()) == sorted(modules - commands | {"cli"})


def test_packages_stand_in_the_order_of_their_layers():
    places = [LAYERS.index(name.split(".")[0]) for name in listed()]
    assert places == sorted(places)


def shown(text: str, what: str = "function", name: str = "spatial_circuits.data.scenes") -> str:
    lines = text.split("\n")
    sphinx.as_rst(None, what, name, None, None, lines)
    return "\n".join(lines)


def test_a_docstring_is_text_and_not_markup():
    assert shown("Maps [B, T] of x_ and *args, |x| < `f(x_)`.") == (
        r"Maps [B, T] of x\_ and \*args, \|x\| \< \ ``f(x_)``\ ." + "\n")
    assert shown("Kinds.\n\none   the first\ntwo   the second") == (
        "Kinds.\n\n::\n\n   one   the first\n   two   the second\n")
    assert shown("Scenes.", "module").startswith(".. rubric:: data.scenes\n\nScenes.")
