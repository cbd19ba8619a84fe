"""Token exchange: hybrids of two prompts, axis and side of a picture, and the fused encoder."""
from functools import partial

import numpy as np
import pytest
import torch

from spatial_circuits.analyses.token_exchange import (
    KINDS_OF_DONOR,
    TOKEN_SETS,
    exchange_tokens,
    hybrids,
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


def test_donors_turn_the_side_or_the_axis():
    offsets = [tuple(v) for v in OFFSETS.tolist()]
    for old in range(len(RELATIONS)):
        x, y = offsets[old]
        opposite, turned = (int(KINDS_OF_DONOR[k][old]) for k in ("opposite", "turned"))
        assert offsets[opposite] == (-x, -y)
        assert np.dot(offsets[turned], (x, y)) == 0


def test_an_exchange_scores_each_picture_against_its_donor(tiny):
    frame = exchange_tokens(tiny, [ABOVE, LEFT], ["relation"], steps=1)
    assert len(frame) == 2 * 5 and not frame.isna()["axis"].any()
    told = {(r.kind, r.tokens): r.target for r in frame[:5].itertuples()}
    assert told == {("own", "none"): "above", ("opposite", "relation"): "below",
                    ("opposite", "all"): "below", ("turned", "relation"): "left",
                    ("turned", "all"): "left"}
    assert frame["seed"].nunique() == 2
    for row in frame.itertuples():
        assert RELATIONS[parse(row.prompt).relation] == row.target


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
