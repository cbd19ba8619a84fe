"""Curves of circuits: the areas by hand, the sets that are kept and removed, and a planted order."""
import numpy as np
import pandas as pd
import pytest

from spatial_circuits.analyses import curves
from spatial_circuits.analyses.ablation import mean_outputs
from spatial_circuits.analyses.curves import (
    WAYS,
    circuit_size,
    curve_sizes,
    faithfulness,
    keep_and_remove,
    minimality,
    random_orders,
    rankings,
)
from spatial_circuits.analyses.heads import heads_of
from spatial_circuits.data.metrics import METRICS, prompt_set
from spatial_circuits.model.store import load

PROMPTS = prompt_set("264")[:4]


def made(score, orders=("good", "bad", "random 1", "random 2"), sizes=(1, 2, 3),
         prompts=6, ways=("keep", "remove")):
    """A frame in which loose of (order, way, size, prompt) is `score`."""
    places = [(f"{o} {w} {k}", o, w, k) for o in orders for w in ways for k in sizes]
    places += [("intact", "", "remove", 0), ("nothing", "", "remove", 4)]
    rows = [{"prompt": f"p{p}", "condition": c, "order": o, "way": w, "size": k,
             **dict.fromkeys(METRICS, False), "loose": score(o, w, k, p)}
            for p in range(prompts) for c, o, w, k in places]
    return pd.DataFrame(rows)


def value(numbers, order, number, column="value"):
    row = numbers[(numbers["order"] == order) & (numbers["number"] == number)]
    return float(row[column].iloc[0])


def one_head(order, way, size, prompt):
    """A model of four heads in which one does everything: first in "good", last in "bad", in the
    middle of the random ones."""
    at = {"good": 1, "bad": 4}.get(order, 2 + (order == "random 2"))
    return (size >= at) == (way == "keep")


def test_areas_by_hand():
    shape, numbers = faithfulness(made(one_head), n_boot=20)
    assert value(numbers, "good", "CPR") == pytest.approx(7 / 8)        # 0, 1, 1, 1, 1 over quarters
    assert value(numbers, "good", "CMD") == pytest.approx(1 / 8)
    assert value(numbers, "bad", "CPR") == pytest.approx(1 / 8)
    # taken away best first: 1, 0, 0, 0, 0; worst first: 1, 1, 1, 1, 0
    assert value(numbers, "good", "ordered weakening") == pytest.approx(3 / 4)
    assert value(numbers, "bad", "ordered weakening") == pytest.approx(-3 / 4)
    assert value(numbers, "random", "CPR") == pytest.approx((5 / 8 + 3 / 8) / 2)
    keep = shape[(shape["order"] == "good") & (shape["way"] == "keep")]
    assert keep["f"].tolist() == [0, 1, 1, 1, 1] and keep["size"].tolist() == [0, 1, 2, 3, 4]
    assert set(shape["order"]) == {"good", "bad", "random"}
    _, kept = faithfulness(made(one_head, ways=("keep",)), n_boot=20)
    assert set(kept[kept["order"] == "good"]["number"]) == {"CPR", "CMD"}
    assert value(numbers, "good", "completeness") == pytest.approx(7 / 8)
    assert value(numbers, "bad", "completeness") == pytest.approx(1 / 8)
    # to take k of a random order away is to keep n - k of one: the same null, from its keep curves
    assert value(kept, "random", "completeness") == pytest.approx(1 - value(kept, "random", "CPR"))


def test_a_model_better_than_the_whole_counts_against_cmd_not_for_it():
    """Faithfulness above 1 raises CPR, and is as far from 1 as if it were below."""
    def score(order, way, size, prompt):
        whole = prompt < 4
        if way == "keep":
            return {0: False, 4: whole}.get(size, True)
        return whole if size == 0 else False
    _, numbers = faithfulness(made(score, ("good",)), n_boot=20)
    f = np.array([0, 1.5, 1.5, 1.5, 1])
    assert value(numbers, "good", "CPR") == pytest.approx(((f[1:] + f[:-1]) / 2).mean())
    g = np.abs(1 - f)
    assert value(numbers, "good", "CMD") == pytest.approx(((g[1:] + g[:-1]) / 2).mean())


def test_intervals_hang_on_the_prompts():
    rng = np.random.default_rng(0)
    coin = {p: rng.random() < 0.5 for p in range(40)}

    def score(order, way, size, prompt):
        if size in (0, 4):
            return (size == 4) == (way == "keep")
        return bool(coin[prompt]) == (way == "keep")
    _, numbers = faithfulness(made(score, ("good",), prompts=40), n_boot=500)
    low, mean, high = (value(numbers, "good", "CPR", c) for c in ("low", "value", "high"))
    assert 0.02 < mean - low < 0.15 and 0.02 < high - mean < 0.15


def test_nothing_to_keep_is_refused():
    with pytest.raises(ValueError, match="nothing that a circuit could keep"):
        faithfulness(made(lambda *_: True), n_boot=5)
    with pytest.raises(ValueError, match="metric 'colour' is unknown; choose from shape"):
        faithfulness(made(one_head), "colour")


@pytest.mark.parametrize("heads", [2, 4, 24, 72, 448])
def test_sizes_are_the_same_from_both_ends(heads):
    sizes = curve_sizes(heads)
    assert sizes[0] == 0 and sizes[-1] == heads and len(sizes) <= 12
    assert sorted(heads - k for k in sizes) == sizes and {1, heads - 1} <= set(sizes)
    with pytest.raises(ValueError, match="a curve needs"):
        curve_sizes(1)


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
def test_every_kind_of_ablation_has_every_order_way_and_size(tiny, kind):
    orders = {"a": heads_of(tiny), **random_orders(tiny, 1)}
    mean = mean_outputs(tiny, PROMPTS, steps=2) if kind == "mean" else None
    frame = keep_and_remove(tiny, PROMPTS, orders, [0, 2, 4], kind, mean, steps=2)
    assert len(frame) == len(PROMPTS) * (2 * 2 * 1 + 2)
    assert set(zip(frame["order"], frame["way"], frame["size"])) == {
        ("", "remove", 0), ("", "remove", 4), *((o, w, 2) for o in orders for w in WAYS)}
    half = frame[frame["size"] == 2].groupby("order")["condition"].unique()
    assert set(half["a"]) == {"a keep 2", "a remove 2"}


def test_what_is_removed_best_first_is_the_rest_of_what_is_kept(tiny, monkeypatch):
    asked = {}

    def ablate(model, prompts, sets, **_):
        asked.update(sets)
        raise StopIteration
    monkeypatch.setattr(curves, "ablate", ablate)
    with pytest.raises(StopIteration):
        keep_and_remove(tiny, PROMPTS, {"a": heads_of(tiny)[::-1]}, [0, 1, 4], "zero")
    assert asked["a remove 1"] == [(1, 1)] and asked["a keep 1"] == [(0, 0), (0, 1), (1, 0)]
    assert set(asked) == {"a keep 1", "a remove 1", "nothing"}
    assert asked["nothing"] == heads_of(tiny)


def test_resampled_heads_speak_for_the_other_prompt():
    """With every head resampled the picture is the donor's, and scored against the prompt."""
    rte = load("rte-biased").fast()
    told = ["red square is above blue circle", "red square is below blue circle"]
    frame = keep_and_remove(rte, told, {"a": heads_of(rte)}, [0, 24], "resample")
    loose = frame.groupby("condition")["loose"].mean()
    assert loose["intact"] == 1 and loose["nothing"] == 0
    assert frame["unique_binding"].all()


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_a_member_that_does_nothing_is_worth_nothing(kind):
    """Of all heads of a trained model the relation head is worth most, some nothing."""
    rte = load("rte-biased").fast()
    told = ["red square is above blue circle", "red square is below blue circle"]
    found = minimality(rte, told, heads_of(rte), kind, seed=2)
    assert found["name"].iloc[-1] == "" and found["loss"].iloc[-1] == pytest.approx(1)
    losses = found.set_index("name")["loss"]
    assert len(losses) == 25 and losses.iloc[:-1].is_monotonic_increasing
    assert losses.iloc[0] <= 0 and losses["L1H3"] == losses.iloc[:-1].max() > 0


def test_the_size_of_a_circuit_is_where_it_is_faithful():
    shape, _ = faithfulness(made(one_head), n_boot=5)
    assert circuit_size(shape, "good") == 1 and circuit_size(shape, "bad") == 4
    with pytest.raises(ValueError, match="no curve of order 'ugly' kept; choose from good"):
        circuit_size(shape, "ugly")


def test_bad_input_is_refused_before_sampling(tiny):
    with pytest.raises(ValueError, match="order 'a' does not hold every head"):
        keep_and_remove(tiny, PROMPTS, {"a": [(0, 0)]}, [0, 4], "zero")
    with pytest.raises(ValueError, match="kind 'half' is unknown; choose from mean, zero, resample"):
        keep_and_remove(tiny, PROMPTS, {"a": heads_of(tiny)}, [0, 4], "half")
    with pytest.raises(ValueError, match="way 'half' is unknown; choose from keep, remove"):
        keep_and_remove(tiny, PROMPTS, {"a": heads_of(tiny)}, [2], "zero", ways=["half"])
    with pytest.raises(ValueError, match="size 5 is out of range; the model has 4 heads"):
        keep_and_remove(tiny, PROMPTS, {"a": heads_of(tiny)}, [5], "zero")
    with pytest.raises(ValueError, match="mean outputs go with kind 'mean'"):
        keep_and_remove(tiny, PROMPTS, {"a": heads_of(tiny)}, [0, 4], "mean")


def test_each_method_ranks_every_head_and_puts_a_carrier_first():
    rte = load("rte-biased").fast()
    found = rankings(rte, prompt_set("264")[:4], every=4, steps=8)
    assert list(found) == ["patching", "attribution", "synopsis", "screen"]
    assert all(sorted(order) == heads_of(rte) for order in found.values())
    assert {found["patching"][0], found["attribution"][0]} <= {(1, 3), (2, 1), (2, 2), (0, 0)}
