"""How long the explorer takes to answer: a changed picture beside the intact one, drawn."""
import pytest

from spatial_circuits.book.widgets import Explorer


@pytest.fixture(scope="module")
def explorer():
    return Explorer("rte")


@pytest.mark.parametrize("control, values", [
    ("seed", (2, 3)), ("off", (("L0H0",), ("L1H3",))), ("hidden", (("relation",), ("shape2",))),
    ("relation", ("left", "below")), ("step", (3, 9)), ("head", (1, 2))])
def test_a_control(benchmark, explorer, control, values):
    widget, state = getattr(explorer, control), iter(range(10**6))
    widget.value = values[-1]  # what an edit needs once (means, vectors) is made here

    def turn():
        widget.value = values[next(state) % 2]

    benchmark.pedantic(turn, rounds=6)
    assert explorer.message.value == ""
