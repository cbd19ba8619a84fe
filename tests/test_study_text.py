"""The tables of chapters 13 to 15, through the command as a reader runs it."""
import json
from functools import partial

import pytest

from spatial_circuits import cli
from spatial_circuits.analyses import subspaces
from spatial_circuits.analyses.ablation import mask_roles
from spatial_circuits.claims import text_tables
from spatial_circuits.claims.text_tables import (
    WINDOWS,
    run_arithmetic,
    run_factors,
    run_robustness,
    run_tokens,
)
from spatial_circuits.data.captions import ROLES
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load


def run(tmp_path, command: str, *options: str) -> dict:
    out = tmp_path / "x.json"
    assert cli.main([command, "--model", "rte-biased", "--limit", "2", "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


def test_windows_cover_all_steps_once():
    assert sorted(s for w in WINDOWS.values() for s in w) == list(range(14))


def test_tokens_has_every_role_and_window(tmp_path):
    found = run(tmp_path, "tokens")
    names = [r["condition"] for r in found["effects"] if r["metric"] == "loose"]
    assert names[0] == "intact" and set(names) >= {"shape2", "relation", "end", "shape2, steps 0-1"} and len(names) == 1 + 6 + 16
    assert not set(names[1:7]) - set(ROLES)
    assert {"axis", "side"} < {r["metric"] for r in found["effects"]}
    json.dumps(found, allow_nan=False)


def test_windows_of_a_role_are_that_roles_alone():
    """Hidden in each window on its own: the first steps alone change what the late ones leave as it was."""
    net, prompts = load("rte-biased"), prompt_set("22")[:2]
    both = mask_roles(net, prompts, {"a": ("relation", None), "b": ("relation", None, [0]), "c": ("shape2", None, [0, 1])}, steps=2)
    alone = {k: mask_roles(net, prompts, {k: g}, steps=2) for k, g in
             {"a": ("relation", None), "b": ("relation", None, [0]), "c": ("shape2", None)}.items()}
    for k, frame in alone.items():
        ours, theirs = (f[f["condition"] == k].reset_index(drop=True) for f in (both, frame))
        assert ours.equals(theirs), k


def test_factors_needs_no_sampling_and_names_every_head(tmp_path):
    found = run(tmp_path, "factors", "--limit", "264", "--permutations", "20")
    assert {(r["token"], r["stage"]) for r in found["partition"]} == {(t, s) for t in ("shape1", "shape2", "relation") for s in ("encoder", "caption MLP")}
    assert len(found["heads"]) == 3 * 24 and all(r["p"] >= 0.0476 for r in found["heads"])
    rte = {(r["token"], r["factor"]): r["partial_r2"] for r in found["partition"] if r["stage"] == "encoder"}
    assert rte["shape1", "relation"] < 1e-6 < rte["relation", "relation"]            # a first word cannot know what follows


def test_robustness_reports_what_it_could_not_read(tmp_path):
    net = load("rte-biased")
    found = run_robustness(net, prompt_set("264")[:16], families=["T0", "T3 the", "typo"])
    assert "typo" in found["unread"] and {r["condition"] for r in found["ratio"]} == {"T0", "T3 the"}
    assert next(r["mean"] for r in found["ratio"] if r["condition"] == "T0") == 1
    assert {(r["token"], r["family"]) for r in found["shifts"]} == {("shape2", "T3 the")}   # one place later: the position code


def test_a_command_refuses_an_unknown_model(capsys):
    assert cli.main(["robustness", "--model", "nowhere", "--limit", "1"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_shares_of_nothing_are_refused():
    """The one picture is wrong, so that its shares would be 0 / 0: NaN is no JSON."""
    with pytest.raises(ValueError, match="obeys the relation of none of 1 prompts"):
        run_tokens(load("rte-biased"), prompt_set("22")[:1], windows=False)


@pytest.fixture
def no_sampling(monkeypatch):
    """The shipped model; fails the test if anything is sampled."""
    net = load("rte-biased")
    monkeypatch.setattr(net.transformer, "forward", lambda *_, **__: pytest.fail("sampling began"))
    return net


@pytest.mark.parametrize("limit", [264, 260])
def test_arithmetic_on_all_prompts_leaves_none_to_estimate_effects(no_sampling, limit):
    with pytest.raises(ValueError, match=f"{limit} prompts are to be changed: give a smaller --limit"):
        run_arithmetic(no_sampling, prompt_set("264")[:limit])


@pytest.mark.parametrize("run_table", [run_robustness, run_factors])
def test_effects_need_prompts_of_all_relations_before_any_work(no_sampling, run_table):
    with pytest.raises(ValueError, match="from 2 prompts, which say 2 of 8 relations; give a larger --limit"):
        run_table(no_sampling, prompt_set("264")[:2])


def test_a_donor_with_other_tokens_is_refused_before_any_work(no_sampling, monkeypatch):
    monkeypatch.setattr(text_tables, "counterpart", lambda prompt, factor: "red square is to the left of blue circle")
    with pytest.raises(ValueError, match="has 1 tokens of role relation and its donor"):
        run_arithmetic(no_sampling, ["red square is above blue circle"])


def test_subspaces_has_every_site_rank_and_kind(monkeypatch):
    net = load("rte-biased")
    for name in ("learn_subspace", "subspace_effects", "subspace_pictures"):
        monkeypatch.setattr(subspaces, name, partial(getattr(subspaces, name), steps=2))
    monkeypatch.setattr(text_tables, "require_obeyed", lambda *_: None)
    record = text_tables.run_subspaces(net, prompt_set("264")[:22], iterations=1, ranks=[1],
                                       other=load("rte-biased"))
    sites, kinds = ("relation", "shape2", "query of L1H3"), ("whole vector", "learned 1", "random 1")
    tests = {(site, tested) for site in sites for tested in ("other prompts", "other phrases")}
    tests |= {(site, "rte-biased") for site in sites[:2]}
    assert {(r["part"], r["site"], r["tested"], r["subspace"]) for r in record["effects"]} == {
        (part, *at, k) for part in ("side", "axis") for at in tests for k in (*kinds, "means 1")}
    assert {(r["part"], r["site"], r["subspace"]) for r in record["pictures"]} == {
        (part, site, k) for part in ("side", "axis") for site in sites
        for k in ("clean", "counterpart", *kinds)}
    whole = [r["mean"] for r in record["effects"]
             if (r["site"], r["subspace"]) == ("relation", "whole vector")]
    assert whole == pytest.approx([1] * 6, abs=1e-4)
    json.dumps(record, allow_nan=False)
    with pytest.raises(ValueError, match="3 prompts are too few"):
        text_tables.run_subspaces(net, prompt_set("264")[:3])
    with pytest.raises(ValueError, match="rte-seed1 has encoder"):
        text_tables.run_subspaces(net, prompt_set("264")[:44], other=load("rte-seed1"))
