"""The reference names everything public, in the order of imports."""
import inspect

import pytest

from spatial_circuits import hooks, reference


def test_it_lists_every_module_and_its_public_functions():
    text = reference.page()
    assert all(f"\n## {name}\n" in "\n" + text for name in reference.modules())
    assert "hooked(model: Module, *hooks: Hook, halves:" in text and "class Hook" not in text
    assert {n for n, _ in reference.public(hooks)} >= {"hooked", "run", "Hook", "Reader", "Edit", "Call"}
    assert all(n in text for n, _ in reference.public(hooks))


def test_a_module_stands_below_those_it_imports():
    order = reference.modules()
    for later, earlier in (("dit", "hooks"), ("hooks", "edits"), ("captions", "text"), ("plots", "explorer"), ("recording", "widgets")):
        assert order.index(later) < order.index(earlier)


def test_docstrings_are_shown_whole_and_as_text():
    text = reference.page(["hooks"])
    assert "Raises ValueError naming the first layer or head out of range" in text and "\\[S or 1, L, H\\]" in text
    assert inspect.getdoc(hooks.Hook).split("\n\n")[1].splitlines()[0] in text


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match="there is no module 'hoks'; choose from .*hooks"):
        reference.page(["hoks"])
