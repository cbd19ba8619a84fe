"""The tables of the commands synopsis, screen, ablate and circuit, on the shipped model."""
import json

import pytest

from spatial_circuits.analyses.ablation import mean_outputs
from spatial_circuits.analyses.heads import heads_of
from spatial_circuits.analyses.injection import relation_vectors
from spatial_circuits.claims import tables as study
from spatial_circuits.data.metrics import METRICS, prompt_set
from spatial_circuits.model.store import load


@pytest.fixture(scope="module")
def rte_model():
    return load("rte-biased").fast()


@pytest.fixture(scope="module")
def nano():
    """Nine heads: what takes a picture for every head is done sooner."""
    return load("nano").fast()


@pytest.fixture
def no_sampling(monkeypatch, rte_model):
    """Fails the test if anything is sampled."""
    def refuse(*_, **__):
        raise AssertionError("sampling began")
    monkeypatch.setattr(rte_model.transformer, "forward", refuse)
    return rte_model


def plain(record: dict) -> dict:
    return json.loads(json.dumps(record, allow_nan=False))


def test_screen_lists_every_head_and_direction_word():
    model = load("rte-biased")
    rows = plain(study.run_screen(model, prompt_set("264")))["heads"]
    assert len(rows) == 24 * len({r["word"] for r in rows})
    assert {r["word"] for r in rows} >= {"above", "below", "left", "right"}


def test_synopsis_ranks_every_head_twice(rte_model):
    record = plain(study.run_synopsis(rte_model, prompt_set("96")[::24], 1))
    assert len(record["heads"]) == 2 * 24 and record["images"] + record["failed"] == 4
    shares = record["curves"]["object"]["share"]["object 1"]
    assert sum(role[0] for role in shares.values()) == pytest.approx(1, abs=0.01)


def test_ablate_names_heads_and_steps(rte_model):
    record = plain(study.run_ablate(rte_model, prompt_set("96")[::48], heads=["L1H3", "L0H0"], kind="zero", when=[0, 1]))
    assert {e["condition"] for e in record["effects"]} == {"intact", "L1H3", "L0H0"} and record["when"] == [0, 1]
    together = study.run_ablate(rte_model, prompt_set("96")[::48], heads=["L1H3", "L0H0"], together=True, role="relation")
    assert {e["condition"] for e in together["effects"]} == {"intact", "L1H3+L0H0"}
    for row in [record, together]:
        assert {e["metric"] for e in row["effects"]} == {*METRICS, "axis", "side"}


def test_circuit_is_found_on_some_prompts_and_tested_on_others(nano, monkeypatch):
    monkeypatch.setattr(study, "mean_outputs", lambda model, prompts: mean_outputs(model, prompts[:22]))
    monkeypatch.setattr(study, "relation_vectors", lambda model, prompts, heads: relation_vectors(model, prompts[::3], heads))
    record = plain(study.run_circuit(nano, prompt_set("264")[3::44]))
    assert record["prompts"] + record["discovery_prompts"] == 6 and record["heads"] == len(heads_of(nano))
    assert all(record["circuit"][role] for role in ("relation", "object", "colour"))
    assert {"intact", "circuit alone", "nothing"} <= {r["condition"] for r in record["tests"]["loose"]}
    for site in ("injection", "injection_at_reader"):
        assert {"relation 1", "random 1"} <= {r["condition"] for r in record[site]}
    for part in ("injection", "injection_at_reader", "without"):
        assert {"axis", "side"} < {r["metric"] for r in record[part]}


def test_curves_compare_the_rankings_with_random_orders(nano, monkeypatch):
    monkeypatch.setattr(study, "mean_outputs", lambda model, prompts: mean_outputs(model, prompts[:22]))
    monkeypatch.setattr(study.curves, "curve_sizes", lambda heads: [0, 3, 6, heads])
    record = plain(study.run_curves(nano, prompt_set("264")[3::66], orders=1))
    assert record["prompts"] + record["discovery_prompts"] == 4 and record["random_circuits"] == 2
    methods = {"patching", "attribution", "synopsis", "screen"}
    assert {r["order"] for r in record["numbers"]} == methods | {"random"}
    assert all(sorted(order) == sorted(record["rankings"]["screen"])
               for order in record["rankings"].values())
    cpr = {r["order"]: r["value"] for r in record["numbers"] if r["number"] == "CPR"}
    assert cpr["patching"] > cpr["random"]
    assert {r["kind"] for r in record["kinds"]} == {"mean", "zero", "resample"}
    with pytest.raises(ValueError, match="3 prompts are too few: heads are found on every fourth"):
        study.run_curves(nano, prompt_set("264")[:3], orders=1)
    with pytest.raises(ValueError, match="0 random orders; curves need at least one"):
        study.run_curves(nano, prompt_set("264")[:4], orders=0)


@pytest.mark.parametrize("options, message", [
    ({"heads": ["L6H0"]}, "L6H0 is out of range; the model has L0H0 to L5H3"),
    ({"heads": ["head 3"]}, "'head 3' is not of the form"),
    ({"role": "verb"}, "role 'verb' is unknown; choose from colour1"),
    ({"when": [14]}, "step 14 is out of range"),
    ({"kind": "half"}, "choose from mean, zero"),
])
def test_ablate_refuses_before_sampling(no_sampling, options, message):
    with pytest.raises(ValueError, match=message):
        study.run_ablate(no_sampling, ["red square is above blue circle"], **options)


def test_roles_and_steps_and_relations_that_are_missing_are_refused(no_sampling):
    with pytest.raises(ValueError, match="holds no token of role colour1"):
        study.run_ablate(no_sampling, ["square is above blue circle"], role="colour1")
    with pytest.raises(ValueError, match="step 14 is out of range"):
        study.run_synopsis(no_sampling, ["red square is above blue circle"], step=14)
    with pytest.raises(ValueError, match="'red square' must name two shapes .* and a relation"):
        study.run_synopsis(no_sampling, ["red square"])
    with pytest.raises(ValueError, match="too few"):
        study.run_circuit(no_sampling, ["red square is above blue circle"])


def test_a_model_that_never_obeys_is_refused_before_a_circuit_is_sought(tiny, album, monkeypatch):
    """Its shares would be 0 / 0, rows of NaN."""
    from dataclasses import replace
    monkeypatch.setattr(study, "find_circuit", lambda *_: pytest.fail("the search began"))
    monkeypatch.setattr(study, "require_scored", lambda *_, **__: None)     # an album has no VAE's size
    blind = replace(tiny, vae=album())
    with pytest.raises(ValueError, match="model tiny obeys the relation of none of 3 prompts"):
        study.run_circuit(blind, prompt_set("264")[:4])
