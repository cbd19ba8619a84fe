"""Claims are judged from a folder's records."""
import json

import pytest

from spatial_circuits import claims


def rows(score: str, means: list[float], spread: float = 0.01, p: float = 0.01) -> list[dict]:
    return [{"name": f"L{i}H0", "score": score, "mean": m, "low": m - spread, "high": m + spread, "p": p} for i, m in enumerate(means)]


def synopsis(relation: list[float], shape: list[float], own: list[float], **options) -> dict:
    share = {"object 1": {"relation": own, "shape1": own}, "object 2": {"shape2": own}}
    return {"heads": rows("relation", relation, **options) + rows("object", shape, **options),
            "curves": {s: {"name": "L0H0", "share": share} for s in ("relation", "object")}}


def change(condition: str, metric: str, mean: float, change: float) -> dict:
    return {"condition": condition, "metric": metric, "mean": mean, "change": change, "change_low": change - 0.05, "change_high": change + 0.05}


def ablation(loose: float, shape: float) -> dict:
    return {"effects": [change("intact", "loose", 0.9, 0), change("intact", "shape", 0.9, 0), change("L0H0", "loose", 0.9 + loose, loose),
                        change("L0H0", "shape", 0.9 + shape, shape), change("L0H0", "color", 0.9, 0)]}


def circuit(together: float, ours: float, control: float) -> dict:
    spread = [{"condition": c, "metric": "loose", "mean": m, "low": m - 0.05, "high": m + 0.05} for c, m in
              (("relation 1", ours), ("random 1", control))]
    return {"without": [change("relation", "loose", 0.9 + together, together)], "circuit": {"relation": ["L0H0"]}, "injection": spread}


def judged(tmp_path, **records) -> dict:
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return {claim: e.status for claim, e in claims.evidence(tmp_path).items()}


def test_nothing_measured_is_nothing_claimed(tmp_path):
    assert judged(tmp_path) == {}
    assert "not yet tested" in claims.table({})


@pytest.mark.parametrize("relation, p, status", [([0.5, 0.1], 0.01, "holds"), ([0.5, 0.495], 0.01, "partly"), ([0.5, 0.1], 0.4, "does not hold")])
def test_a_head_is_single_if_its_interval_stands_apart(tmp_path, relation, p, status):
    assert judged(tmp_path, synopsis=synopsis(relation, [0.9, 0.1], [0.1, 0.9], p=p))["C5"] == status


@pytest.mark.parametrize("cosines, status", [([0.95, 0.93], "holds"), ([0.95, -0.93], "partly"), ([0.5, 0.2], "does not hold")])
def test_the_ramp_must_point_to_the_named_side_for_every_word(tmp_path, cosines, status):
    heads = [{"name": "L0H0", "word": w, "cosine": c, "projection": 9} for w, c in zip(("above", "below"), cosines)]
    assert judged(tmp_path, screen={"heads": heads}, synopsis=synopsis([0.5, 0.1], [0.5, 0.1], [0.9]))["C6"] == status


@pytest.mark.parametrize("own, shape, status", [([0.1, 0.9], -0.5, "holds"), ([0.9, 0.8], -0.5, "partly"), ([0.9, 0.8], 0.0, "does not hold")])
def test_the_object_head_is_late_and_carries_shape_only(tmp_path, own, shape, status):
    found = judged(tmp_path, synopsis=synopsis([0.5, 0.1], [0.5, 0.1], own), ablation=ablation(0, shape))
    assert found["C7"] == status


@pytest.mark.parametrize("ours, control, status", [(0.9, 0.0, "holds"), (0.3, 0.0, "partly"), (0.3, 0.28, "does not hold")])
def test_injection_must_beat_the_random_vector(tmp_path, ours, control, status):
    assert judged(tmp_path, circuit=circuit(0, ours, control))["C8"] == status


@pytest.mark.parametrize("alone, together, shape, status", [
    (-0.5, -0.6, -0.5, "holds"), (-0.1, -0.6, -0.5, "partly"), (-0.1, -0.1, -0.5, "does not hold"), (-0.5, -0.6, 0.0, "does not hold")])
def test_ablation_counts_one_head_or_the_set(tmp_path, alone, together, shape, status):
    found = judged(tmp_path, synopsis=synopsis([0.5, 0.1], [0.5, 0.1], [0.9]), ablation=ablation(alone, shape), circuit=circuit(together, 1, 0))
    assert found["C9"] == status
