"""Edges: against exact path patching, and planted ones: the planted edge comes first, and where there is none nothing passes."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from planting import grove

from spatial_circuits.analyses.carriers import (
    alike,
    between,
    carriers,
    removal,
    straight,
    tags,
    ways,
)
from spatial_circuits.analyses.edges import edge_attribution
from spatial_circuits.analyses.exact_edges import check_edges, exact_edges
from spatial_circuits.analyses.patching import query_shares
from spatial_circuits.analyses.wires import position, senders, watched
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.transformer import predict

PROMPTS = prompt_set("264")[:8]
SENDER, READER = (0, 2), (2, 1)
OPTIONS = {"steps": 4, "every": 2}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def planted(tiny, monkeypatch):
    return grove(tiny, monkeypatch, [SENDER, READER])


def test_writes_and_what_came_in_make_the_stream(planted):
    with watched(planted) as (wires, session):
        session.at(0, ("cond",))
        text = planted.encoder.encode(PROMPTS[:2])
        predict(planted.transformer, torch.randn(2, 4, 16, 16), torch.full((2,), 500),
                text.embeddings, text.mask)
        made = wires.streams["self", 0] + wires.writes().sum(0)
        assert torch.allclose(made, wires.streams["out", 0], atol=1e-4)
    assert len(senders(planted)) == 3 * 9
    assert [position(n) for n in ("L0S1", "L2H3.q", "L11MLP", "L2S0.k")] == [0, 7, 35, 6]
    with pytest.raises(ValueError, match="'L2X0' is no component"):
        position("L2X0")


def test_the_planted_edge_comes_first(planted):
    """Into the reader's query only the planted head writes straight, and what it moved in between."""
    table = edge_attribution(planted, PROMPTS, reader=READER, points=1, draws=300, **OPTIONS)
    into = table[table["receiver"] == "L2H1.q"]
    assert into["score"].sum() == pytest.approx(1, abs=1e-4)          # a query reads the stream as it is
    heads = table[table["sender"].str.contains("H") & table["receiver"].str.endswith("q")]
    assert tuple(heads.iloc[0][["sender", "receiver"]]) == ("L0H2", "L2H1.q")
    assert heads.iloc[0]["p"] < 0.01 and heads.iloc[0]["z"] > heads.iloc[0]["null"]
    silent = table[table["sender"].str.fullmatch(r"L\dH\d") & (table["sender"] != "L0H2")]
    assert (silent["score"] == 0).all() and (silent["p"] == 1).all()
    words = table[table["sender"].str.startswith("text ")]
    assert tuple(words.iloc[0][["sender"]]) == ("text relation",) and words.iloc[0]["receiver"].startswith("L0H2.")
    assert words[~words["receiver"].str.startswith("L0H2")]["score"].abs().max() < 1e-6


def test_where_the_edge_is_not_nothing_passes(tiny, monkeypatch):
    """The reader is deaf: the sender writes, and no edge into its query is there to be found."""
    net = grove(tiny, monkeypatch, [SENDER, READER], deaf=[READER])
    table = edge_attribution(net, PROMPTS, points=1, draws=300, **OPTIONS)
    into = table[table["receiver"] == "L2H1.q"]
    assert len(into) > 5 and (into["p"] == 1).all() and (into["score"] == 0).all()
    assert (table["p"] < 0.05).any()                                    # others are there
    with pytest.raises(ValueError, match="the query of L2H1 is the same for a prompt and its counterpart"):
        edge_attribution(net, PROMPTS, reader=READER, **OPTIONS)


def test_changes_that_belong_to_no_prompt_do_not_pass(planted, monkeypatch):
    """Each receiver meets another prompt's change: the null itself, of which a twentieth may pass."""
    from spatial_circuits.analyses import edges
    plain, passed = edges._pair_scores, []

    def shuffled(pairs, points):
        names, scores = plain(pairs, points)
        return names, scores[torch.from_numpy(order)]
    monkeypatch.setattr(edges, "_pair_scores", shuffled)
    for seed in range(10):
        order = np.random.default_rng(seed + 50).permutation(len(PROMPTS))
        table = edge_attribution(planted, PROMPTS, points=1, draws=100, steps=1)
        passed.append(bool((table["p"] < 0.05).any()))
    assert sum(passed) <= 3                                            # Binomial(10, .05): 4 or more in .1 % of runs


def test_exact_edges_are_path_patches(planted):
    """Between cross-attention heads: the query that `PathPatch` gives, at the same latents and step."""
    paths = query_shares(planted, PROMPTS[:3], "relation", [SENDER], READER)["straight"]
    first = exact_edges(planted, PROMPTS[:3], [("L0H2", "L2H1.q")], reader=READER, steps=14, every=14)
    assert list(first) == ["L0H2 -> L2H1.q"]
    np.testing.assert_allclose(first.to_numpy()[:, 0], paths, atol=1e-3)


EDGES = [("L0H2", "picture"), ("L0H2", "L1S0.v"), ("L0H2", "L0MLP"), ("L0MLP", "L2H1.q"), ("L2H1", "L2MLP"),
         ("L1S1", "L1MLP"), ("text relation", "L0H2.k"), ("text relation", "L0H2.v"), ("L0MLP", "L2S3.q")]


def test_small_changes_are_what_the_gradient_says(planted):
    """Of a change that is small, attribution is the exact effect, for every kind of sender and receiver."""
    net = replace(planted)
    for block in net.transformer.transformer_blocks:
        block.attn2.to_out[0].weight.data *= 0.02
    exact = exact_edges(net, PROMPTS, EDGES, **OPTIONS).mean()
    table = edge_attribution(net, PROMPTS, points=1, draws=1, **OPTIONS)
    table.index = table["sender"] + " -> " + table["receiver"]
    ours = table.loc[list(exact.index), "alone"]
    assert np.corrcoef(ours, exact)[0, 1] > 0.95 and (np.sign(ours) == np.sign(exact))[exact.abs() > 0.01].all()


def test_attribution_is_checked_and_cheaper(planted):
    table = edge_attribution(planted, PROMPTS, draws=50, **OPTIONS)
    rows, numbers = check_edges(planted, PROMPTS, table, 16, **OPTIONS)
    assert len(rows) == 16 and set(numbers) == {"rank correlation", "correlation", "error", "bias", "cost ratio"}
    assert numbers["rank correlation"] > 0.7 and numbers["correlation"] > 0.8 and numbers["cost ratio"] > 2
    with pytest.raises(ValueError, match="sample is 2; it must be 3 to"):
        check_edges(planted, PROMPTS, table, 2)


def test_nothing_stays_on_the_model(planted):
    edge_attribution(planted, PROMPTS[:2], steps=1, points=1, draws=1)
    for block in planted.transformer.transformer_blocks:
        assert not block._forward_pre_hooks and not block.ff._forward_hooks and not block.norm2._forward_pre_hooks
    assert not planted.transformer.norm_out._forward_pre_hooks


def test_what_is_held_is_what_is_lost(planted):
    nodes = between(planted, [SENDER], READER)
    assert nodes[0] == "L0MLP" and nodes[-1] == "L2S3" and "L1H0" in nodes and "L0H1" not in nodes
    found = tags(planted, PROMPTS, [SENDER], READER, {"": [], "all": nodes, "silent": ["L1H0", "L1H3"]}, **OPTIONS).mean()
    assert found[""] == pytest.approx(1, abs=1e-3)                     # no other head reads the text
    assert found["silent"] == pytest.approx(found[""], abs=1e-5)
    told = ways(planted, PROMPTS, [SENDER], READER, **OPTIONS).mean()
    assert told["straight"] == pytest.approx(found["all"], abs=1e-5)
    table = edge_attribution(planted, PROMPTS, reader=READER, points=1, draws=20, **OPTIONS)
    alone = straight(table, [SENDER], READER)
    assert alone["lost"] == pytest.approx(found["all"], abs=1e-3)      # the straight way, told twice
    assert alone["p"] == pytest.approx(1 / alone["sets"]) and alone["sets"] == 8


def test_a_planted_carrier_is_named_and_beats_its_kind(tiny, monkeypatch):
    """The tag can pass by the MLP of layer 0 alone: the reader is deaf to what the sender writes itself."""
    net = grove(tiny, monkeypatch, [SENDER, READER])
    blocks = net.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        block.ff.net[2].weight.data *= 6 if i == 0 else 0
        block.attn1.to_out[0].weight.data *= 0
    written = blocks[0].attn2.to_out[0].weight[:, 16:24]                            # the sender's columns
    q, _ = torch.linalg.qr(written)
    weight = blocks[2].attn2.to_q.weight
    weight.data -= weight @ q @ q.T                                                 # nothing of them is read
    found = carriers(net, PROMPTS, [SENDER], READER, **OPTIONS)
    assert list(found["name"]) == ["", "L0MLP"] and found["left"].iloc[-1] < 0.05
    record = removal(net, PROMPTS, [SENDER], READER, ["L0MLP"], **OPTIONS)
    assert record["lost"] > 0.95 and record["sets"] == 2 and record["p"] == 0.5     # two MLPs lie between
    told = ways(net, PROMPTS, [SENDER], READER, **OPTIONS).mean()
    assert abs(told["straight"]) < 0.05 < told["by MLPs"] and told["without MLPs"] < 0.05


def test_sets_alike_are_all_of_them_or_drawn():
    nodes = ["L0S0", "L0S1", "L0S2", "L0MLP", "L1MLP", "L1H0"]
    assert len(alike(nodes, ["L0S1", "L1MLP"])) == 6 and len(alike(nodes, ["L1H0"])) == 1
    drawn = alike(nodes, ["L0S1", "L0S0", "L1MLP"], draws=5)
    assert len(drawn) == 5 and all(len(set(s)) == 3 and sum("S" in n for n in s) == 2 for s in drawn)


@pytest.mark.parametrize("call, message", [
    (lambda m: edge_attribution(m, PROMPTS, points=0), "points, draws and prompts are 0"),
    (lambda m: edge_attribution(m, PROMPTS[:1]), "1000 and 1; edges need"),
    (lambda m: edge_attribution(m, PROMPTS, reader=(7, 0)), "head L7H0 is out of range"),
    (lambda m: edge_attribution(m, PROMPTS, every=0), "every is 0"),
    (lambda m: exact_edges(m, PROMPTS, [("L1H0", "L0MLP")]), "no edge from 'L1H0' to 'L0MLP'"),
    (lambda m: exact_edges(m, PROMPTS, [("L0H0", "L1H1.k")]), "no edge from 'L0H0' to 'L1H1.k'"),
    (lambda m: tags(m, PROMPTS, [SENDER], READER, {"x": ["L2MLP"]}), "set 'x' holds 'L2MLP'"),
    (lambda m: between(m, [READER], SENDER), "no relation head comes before the reader L0H2"),
    (lambda m: removal(m, PROMPTS, [SENDER], READER, []), "no component is chosen")])
def test_wrong_values_are_refused(planted, call, message):
    with pytest.raises(ValueError, match=message):
        call(planted)
