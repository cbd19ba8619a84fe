"""Tables of edges and of the fused reading, and the figures that are drawn from them alone."""
import json
from functools import partial

import pandas as pd
import pytest
from matplotlib.figure import Figure

from spatial_circuits.analyses.token_exchange import TOKEN_SETS
from spatial_circuits.book.path_figures import token_matrix, two_circuits
from spatial_circuits.claims import path_tables
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load

PROMPTS = prompt_set("264")[3::33]


@pytest.fixture(scope="module")
def rte():
    return load("rte-biased").fast()


def plain(record: dict) -> dict:
    return json.loads(json.dumps(record, allow_nan=False))


def texts(figure: Figure) -> str:
    return " | ".join(t.get_text().replace("\n", " ") for ax in figure.axes for t in ax.texts)


@pytest.fixture(scope="module")
def edges(rte):
    """The record of the shipped model, its reader and relation head named: no circuit is searched."""
    with pytest.MonkeyPatch.context() as patch:
        from spatial_circuits.analyses.circuit import Circuit
        for name in ("edge_attribution", "check_edges", "ways", "carriers"):
            patch.setattr(path_tables, name, partial(getattr(path_tables, name), every=7))
        patch.setattr(path_tables, "find_circuit", lambda *_, **__: Circuit([(0, 0)], [(1, 3)], [(2, 2)], pd.DataFrame()))
        return plain(path_tables.run_edges(rte, PROMPTS, draws=20, sample=6, relation=["L0H0"]))


def test_edges_of_a_trained_model(edges):
    assert edges["circuit"] == {"relation": ["L0H0"], "object": ["L1H3"], "colour": ["L2H2"]}
    assert len(edges["edges"]) == path_tables.STRONGEST < edges["count"] and edges["passed"] >= 0
    assert edges["check"]["cost ratio"] > 1 and len(edges["check"]["rows"]) == 6
    reader, = edges["readers"]
    told = {row["way"]: row for row in reader["ways"]}
    assert told["all paths"]["of_all"] == 1 and told["straight"]["turned"] <= told["all paths"]["turned"] + 0.2
    assert reader["straight"]["chosen"] == ["L0H0"] and 0 < reader["straight"]["p"] <= 1
    into = [row for row in reader["edges"] if row["receiver"] == "L1H3.q"]
    assert into and reader["carriers"][0] == {"name": "", "left": 1.0}


def test_edges_refuse_before_anything_is_drawn(rte):
    with pytest.raises(ValueError, match="head L9H0 is out of range"):
        path_tables.run_edges(rte, PROMPTS, readers=["L9H0"])
    with pytest.raises(ValueError, match="no relation head comes before the reader L1H3"):
        path_tables.run_edges(rte, PROMPTS, readers=["L2H1", "L1H3"], relation=["L1H0"])
    with pytest.raises(ValueError, match="7 prompts are too few"):
        path_tables.run_edges(rte, PROMPTS[:7])


@pytest.fixture(scope="module")
def fused(rte):
    with pytest.MonkeyPatch.context() as patch:
        heads = pd.DataFrame([("L0H0", (0, 0), 0.8, 0.7, 0.9)], columns=["name", "head", "effect", "low", "high"])
        patch.setattr(path_tables, "find_readers", lambda *_, **__: heads)
        return plain(path_tables.run_fused(rte, PROMPTS[:4], draws=2, tokens=["relation"]))


def test_the_fused_record_has_shares_beside_random_ones(fused):
    reading, = fused["readings"]
    assert {(r["part"], r["heads"]) for r in reading["turned"]} == {
        (part, heads) for part in ("side", "axis") for heads in ("no head", "all heads", "readers", "all others", "random")}
    every = {r["part"]: r for r in reading["turned"] if r["heads"] == "all heads"}
    assert every["side"]["share"] > 0.5 and every["side"]["of_all"] == 1       # the relation word, in all heads
    assert reading["roles"][0]["name"] == "L0H0" and fused["draws"] == 2


def test_circuits_are_drawn_from_tables_alone(edges, fused):
    drawn = texts(two_circuits(edges, fused))
    assert "relation word" in drawn and "L1H3" in drawn and "L0H0" in drawn and "straight" in drawn and "these heads alone turn" in drawn
    with pytest.raises(ValueError, match="the record holds no reader"):
        two_circuits({**edges, "readers": []}, fused)


def test_a_tag_from_one_reader_to_another_is_drawn(edges, fused):
    reading = fused["readings"][0]
    later = {"name": "L2H1"}
    both = {**reading, "found": [*reading["found"], later], "roles": [*reading["roles"], {**reading["roles"][0], **later}]}
    ways = [{"way": "all paths", "turned": 0.84}]
    two = {**fused, "readings": [both]}
    own = {"readers": [{"reader": "L2H1", "relation": ["L0H0"], "ways": ways}]}
    strange = {"readers": [{"reader": "L2H1", "relation": ["L1H0"], "ways": ways}]}     # L1H0 is no reader
    assert "turns 84% of its query" in texts(two_circuits(edges, two, handed=own))
    assert "query" not in texts(two_circuits(edges, two, handed=strange))
    assert "query" not in texts(two_circuits(edges, two))


def test_the_matrix_shows_every_token_and_what_is_beyond_the_control():
    rows = [{"kind": kind, "tokens": t, "part": part, "share": 0.9 if t == "relation" else 0.1, "low": 0.05, "high": 0.95,
             "control": 0.1, "prompts": 10, "p": None if "given" in part else 0.001 if t == "relation" else 1.0}
            for kind in ("opposite", "turned") for t in (*TOKEN_SETS, "all") for part in ("axis", "side", "side given axis")]
    figure = token_matrix(rows)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["relation", "shape2"] and len(ax.texts) == 22 * 3
    bold = [t.get_text() for t in ax.texts if t.get_weight() == "bold"]
    assert bold == ["0.90 [0.05, 0.95]"] * 2
