"""Challenges: a baseline is what the run's own tables say, and a run without them is left out."""
import json
import shutil

import pandas as pd
import pytest

from spatial_circuits.claims import challenges, claims
from spatial_circuits.model.store import names

FOLDERS = [claims.folder_of(name) for name in names()]


@pytest.fixture
def run(tmp_path):
    """A function name -> its folder, with what says what kind of model it is and no tables."""
    def copy(name: str):
        for file in ("text.json", "recipe.json"):
            shutil.copy(claims.folder_of(name) / file, tmp_path)
        return tmp_path
    return copy


def put(folder, name: str, table: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(table))


def test_every_question_has_a_run_of_the_kind_that_it_is_about():
    kinds = {claims.kind(folder) for folder in FOLDERS}
    assert len({c.question for c in challenges.CHALLENGES}) == len(challenges.CHALLENGES)
    for c in challenges.CHALLENGES:
        assert set(c.kinds) & kinds, c.question


def test_a_run_without_tables_answers_nothing(run):
    assert challenges.challenge_rows([run("rte")]).empty


def test_baselines_are_those_of_the_tables(run):
    folder = run("t5-untrained")
    put(folder, "robustness", {"ratio": [{"condition": "T0", "mean": 1.0, "low": 1.0, "high": 1.0},
                                         {"condition": "T3 the", "mean": 0.25, "low": 0.2, "high": 0.3}]})
    put(folder, "evaluation", {"metrics": {"strict": {"mean": 0.4, "low": 0.3, "high": 0.5, "ceiling": 0.8}}})
    moved = [{"token": "shape2", "vector": v, "k": k, "metric": "loose", "mean": m, "low": m, "high": m}
             for v, k, m in (("relation", 1.0, 0.1), ("relation", 2.0, 0.3), ("shuffled", 3.0, 0.9))]
    put(folder, "arithmetic", {"moved": moved, "graft": [
        {"token": t, "condition": "grafted", "metric": "loose", "mean": m, "low": 0.0, "high": 1.0}
        for t, m in (("relation", 0.75), ("shape2", 0.125))]})
    found = challenges.challenge_rows([folder]).set_index("question")["baseline"]
    assert sorted(found) == ["0.25 [0.20, 0.30] with T3 the", "0.30 [0.30, 0.30] at k = 2", "0.50 [0.37, 0.62]",
                             "word 0.75 [0.00, 1.00], shape 0.12 [0.00, 1.00]"]


def test_a_circuit_counts_a_head_once():
    tables = {"circuit": {"heads": 24, "circuit": {"relation": ["L0H0", "L1H1"], "object": ["L1H1"]},
                          "tests": {"loose": [{"condition": "circuit alone", "mean": 0.9, "low": 0.8, "high": 1.0}]}}}
    assert challenges.heads_kept(tables) == "2 of 24 heads keep 0.90 [0.80, 1.00]"


@pytest.mark.parametrize("losses, said", [((0.1, 0.2, 0.3), "1.00 over 3 heads"), ((0.3, 0.2, 0.1), "-1.00 over 3 heads")])
def test_weights_are_ranked_by_their_largest_ramp_of_either_sign(losses, said):
    heads = [{"name": f"L0H{h}", "projection": p} for h, ps in enumerate(((1, -0.5), (-2, 1), (0, 3))) for p in ps]
    effects = [{"condition": c, "metric": "loose", "change": x} for c, x in
               zip(("intact", "L0H0", "L0H1", "L0H2"), (0.0, *(-x for x in losses)))]
    assert challenges.weights_against_effects({"screen": {"heads": heads}, "ablation": {"effects": effects}}).startswith(said)


@pytest.mark.parametrize("first_up, asked", [(0.5, True), (0.95, False)])
def test_pictures_to_the_relation_are_asked_of_unbiased_runs(run, first_up, asked):
    folder = run("rte")
    recipe = json.loads((folder / "recipe.json").read_text())
    put(folder, "recipe", recipe | {"first_up": first_up})
    records = [{"images": 1000 * i, "color": 0.9, "shape": 0.9, "unique_binding": 0.9, "loose": 0.2 * i} for i in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = challenges.challenge_rows([folder])["baseline"].tolist()
    assert found == (["3 thousand"] if asked else [])


def test_a_guess_is_the_commonest_reading():
    read = pd.Series(["second shape"] * 3 + ["relation word"])
    assert challenges.commoner_reading(read).startswith("second shape: 3 of 4 runs [0.30, 0.9")
    with pytest.raises(ValueError, match="read holds no run"):
        challenges.commoner_reading(pd.Series([], dtype=object))


def test_the_page_has_every_question_its_command_and_the_runs():
    page = challenges.challenges_page(challenges.challenge_rows(FOLDERS), claims.survey(FOLDERS))
    for c in challenges.CHALLENGES:
        assert c.question in page and c.command in page
    assert "not yet tested" in page
