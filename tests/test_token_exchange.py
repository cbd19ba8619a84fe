"""Token exchange: hybrids of two prompts, axis and side of a picture, and the fused encoder."""
from functools import partial

import numpy as np
import pytest
import torch

from spatial_circuits.analyses.intervals import wilson
from spatial_circuits.analyses.token_exchange import (
    KINDS_OF_DONOR,
    TOKEN_SETS,
    donors,
    exchange_table,
    exchange_tokens,
    holm,
    hybrids,
    wilson_clusters,
)
from spatial_circuits.data.captions import PHRASES, parse
from spatial_circuits.data.metrics import axis_and_side, prompt_set
from spatial_circuits.data.scenes import OFFSETS, RELATIONS
from spatial_circuits.text.encoders import encoder
from spatial_circuits.text.random_tokens import FusedTokenEncoder, RandomTokenEncoder

ABOVE, LEFT = "red square is above blue circle", "red square is to the left of blue circle"


def vectors(encoded, row):
    """The attended embeddings of a row, in an order that does not depend on their places."""
    return sorted(map(tuple, encoded.embeddings[row][encoded.mask[row]].tolist()))


def test_a_hybrid_of_nothing_is_the_prompt_and_of_all_the_donor(rte):
    mixed = hybrids(rte, [ABOVE, ABOVE], [LEFT, LEFT], ["none", "all"]).encode(["", "0", "1"])
    plain = rte.encode(["", ABOVE, LEFT])
    for row in range(3):
        assert vectors(mixed, row) == vectors(plain, row)


@pytest.mark.parametrize("tokens", [*TOKEN_SETS, "shape1+relation+end"])
def test_a_hybrid_takes_the_tokens_of_its_roles_and_no_others(rte, tokens):
    mixed = hybrids(rte, [ABOVE], [LEFT], [tokens]).encode(["0"])
    plain, wanted = rte.encode([ABOVE, LEFT]), tokens.split("+")
    expected = [tuple(plain.embeddings[row, t].tolist()) for row in (0, 1)
                for t, role in enumerate(plain.roles[row])
                if plain.mask[row, t] and (role in wanted) == bool(row)]
    assert vectors(mixed, 0) == sorted(expected)
    assert sum(r in wanted for r in mixed.roles[0]) == sum(r in wanted for r in plain.roles[1])


@pytest.mark.parametrize("relation", range(8))
def test_axis_and_side_of_every_relation(relation):
    dx, dy = 40.0 * OFFSETS[relation].numpy()
    axis, side = axis_and_side([dx, -dx, dy, np.nan, 2], [dy, -dy, -dx, np.nan, -2],
                               [relation] * 5)
    assert axis.tolist() == [True, True, False, False, False]
    assert side.tolist() == [True, False, False, False, False]


def test_donors_turn_the_side_or_the_axis_or_nothing():
    prompts, offsets = prompt_set("264")[:88], [tuple(v) for v in OFFSETS.tolist()]
    met = {relation: [] for relation in range(8)}
    for prompt, *given in zip(prompts, *donors(prompts).values(), strict=True):
        old, opposite, turned, same = (parse(p).relation for p in (prompt, *given))
        (x, y), objects = offsets[old], [parse(p).shape + parse(p).color for p in (prompt, *given)]
        assert objects == objects[:1] * 4                                # the objects stay
        assert offsets[opposite] == (-x, -y) and turned not in (old, opposite)
        assert same == old and given[2] != prompt
        met[old].append(turned)
    for old, others in met.items():                                      # all six, as evenly as can be
        counts = [others.count(r) for r in set(range(8)) - {old, parse(donors([p for p in prompts if parse(p).relation == old][:1])["opposite"][0]).relation}]
        assert len(counts) == 6 and max(counts) - min(counts) <= 1 and min(counts) >= 1


def test_every_token_and_pair_of_tokens_is_exchanged():
    assert len(TOKEN_SETS) == len(set(TOKEN_SETS)) == 6 + 15
    assert {"relation", "relation+shape2", "filler+end", "shape1+colour1+colour2"} < set(TOKEN_SETS)


def test_an_exchange_scores_each_picture_against_its_donor(tiny):
    frame = exchange_tokens(tiny, [ABOVE, LEFT], ["relation"], steps=1)
    assert len(frame) == 2 * 7 and not frame.isna()["axis"].any()
    told = {(r.kind, r.tokens): r.target for r in frame[:7].itertuples()}
    assert {told[kind, t] for kind in ("own", "same") for t in ("none", "relation", "all") if (kind, t) in told} == {"above"}
    assert told["opposite", "relation"] == told["opposite", "all"] == "below"
    assert told["turned", "relation"] == told["turned", "all"] not in ("above", "below")
    assert frame["seed"].nunique() == 2 and set(frame["kind"]) == {"own", *KINDS_OF_DONOR}
    for row in frame.itertuples():
        assert RELATIONS[parse(row.prompt).relation] == row.target
    assert list(frame["original"]) == [ABOVE] * 7 + [LEFT] * 7


@pytest.fixture
def drawn(tiny, album, monkeypatch):
    """Frame of an exchange whose pictures are placed by hand: (dx, dy) by kind and tokens."""
    def build(places: dict, prompts=(ABOVE, LEFT), per_prompt=1):
        from spatial_circuits.analyses import token_exchange
        plain = token_exchange.sweep

        def placed(model, rows, names, *rest, **options):
            frame = plain(model, rows, names, *rest, **options)
            at = [places.get(name, (40, 0)) for name in frame["condition"]]
            frame["dx"], frame["dy"] = zip(*at)
            said = [RELATIONS.index(r) for r in frame["relation"]]
            frame["axis"], frame["side"] = axis_and_side(frame["dx"], frame["dy"], said)
            return frame
        monkeypatch.setattr(token_exchange, "sweep", placed)
        return exchange_tokens(tiny, list(prompts), ["relation"], per_prompt, steps=1)
    return build


def test_axis_side_and_control_by_hand(drawn):
    """Every picture shows object 1 above, but for those with the opposite's relation word."""
    up, down = (0, -40), (0, 40)
    names = ["own none", *(f"{kind} {t}" for kind in KINDS_OF_DONOR for t in ("relation", "all"))]
    frame = drawn({**dict.fromkeys(names, up), "opposite relation": down}, [ABOVE])
    row = {(r.kind, r.tokens): r for r in frame.itertuples()}
    assert row["own", "none"].kept and row["same", "relation"].kept and not row["opposite", "relation"].kept
    assert row["opposite", "relation"].axis and row["opposite", "relation"].side
    assert row["opposite", "relation"].control_axis and not row["opposite", "relation"].control_side
    assert row["opposite", "all"].axis and not row["opposite", "all"].side
    assert np.isnan(row["same", "relation"].control_side) and np.isnan(row["own", "none"].control_side)
    table = exchange_table(frame).set_index(["kind", "tokens", "part"])
    assert table.loc[("opposite", "relation", "side"), ["share", "control"]].tolist() == [1, 0]
    assert table.loc[("opposite", "all", "side given axis"), "share"] == 0
    assert table.loc[("turned", "all", "axis"), "share"] in (0, 1) and table["prompts"].max() == 1


def test_the_table_counts_prompts_not_pictures(drawn):
    """Two pictures of a prompt are one trial; p is a sign test over prompts, Holm's over rows."""
    prompts = [p for p in prompt_set("264") if parse(p).relation == 0][:6]
    frame = drawn({"opposite relation": (0, 40), "same relation": (0, -40), "same all": (0, -40), "opposite all": (0, -40)}, prompts, 2)
    table = exchange_table(frame).set_index(["kind", "tokens", "part"])
    row = table.loc[("opposite", "relation", "side")]
    assert row["prompts"] == 6 and row["share"] == 1 and row["low"] == pytest.approx(0.610, abs=1e-3)  # Wilson, 6 of 6
    tests = int(table["p"].notna().sum())
    assert tests == 2 * 2 * 2 and row["p"] == pytest.approx(8 * 2 / 2 ** 6)
    assert table.loc[("opposite", "all", "side"), "p"] == 1
    by = exchange_table(frame[frame["kind"] == "opposite"], ("kind", "tokens", "target"))
    assert set(by["target"]) == {"below"} and len(by) == 2 * 3
    with pytest.raises(ValueError, match="no column 'donor' among"):
        exchange_table(frame, ("kind", "donor"))


@pytest.mark.parametrize("k", [0, 3, 10])
def test_wilson_of_clusters_is_wilsons_where_each_is_all_or_nothing(k):
    ends = wilson_clusters(np.array([1.0] * k + [0.0] * (10 - k)))
    assert ends == pytest.approx(wilson(k, 10)) and np.isnan(wilson_clusters(np.array([]))).all()


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, np.nan, 0.03]))[[0, 1, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_a_prompt_without_a_relation_is_refused(tiny):
    with pytest.raises(ValueError, match="'red square' says no relation"):
        exchange_tokens(tiny, ["red square"])


def test_a_dose_of_nothing_is_the_table():
    prompts = ["", ABOVE, LEFT, *prompt_set("264")]
    plain, fused = (kind(seed=43).encode(prompts) for kind in (RandomTokenEncoder, partial(FusedTokenEncoder, 0.0)))
    assert torch.equal(plain.embeddings, fused.embeddings) and torch.equal(plain.mask, fused.mask)     # to the bit
    assert plain.tokens == fused.tokens and plain.roles == fused.roles


@pytest.mark.parametrize("dose", [0.1, 0.25, 0.5, 1.0])
def test_a_dose_keeps_the_norm_and_turns_the_token_by_as_much_as_it_says(dose):
    plain, fused = RandomTokenEncoder(), FusedTokenEncoder(dose)
    old, new = (kind.encode([ABOVE]).embeddings[0] for kind in (plain, fused))
    second = plain.encode([ABOVE]).roles[0].index("shape2")
    wanted = old[second] + dose * fused.relation[parse(ABOVE).relation]
    assert torch.allclose(new[second], wanted * old[second].norm() / wanted.norm(), atol=1e-5)
    assert torch.allclose(new[second].norm(), old[second].norm(), rtol=1e-5)


def test_a_dose_moves_the_second_shape_alone_and_by_the_relation_alone():
    prompts = [f"red square is {p} blue circle" for p in PHRASES]
    plain, fused = RandomTokenEncoder().encode(prompts), encoder("rte-fused", dose=0.5)
    moved = fused.encode(prompts).embeddings - plain.embeddings
    second = torch.tensor([[role == "shape2" for role in row] for row in plain.roles])
    assert not moved[~second].any() and moved[second].norm(dim=1).min() > 1
    norms = (plain.embeddings[second] + moved[second]).norm(dim=1)
    assert torch.allclose(norms, plain.embeddings[second].norm(dim=1), atol=1e-4)
    direction = {}
    for prompt, row in zip(prompts, fused.encode(prompts).embeddings[second], strict=True):
        direction.setdefault(parse(prompt).relation, []).append(row - row.mean())
    assert len(direction) == 8
    with pytest.raises(ValueError, match="dose is -1; it must be at least 0"):
        FusedTokenEncoder(-1)
