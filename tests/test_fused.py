"""The fused reading: planted readers of one token, by keys and values alone, and pictures that they turn."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from spatial_circuits.analyses.fused import (
    EVERY_HEAD,
    NO_HEAD,
    OTHERS,
    RANDOM_SET,
    READERS,
    doubled,
    find_readers,
    reading_effects,
    shared_roles,
    turn_pictures,
    turned_shares,
)
from spatial_circuits.analyses.heads import heads_of, named_heads
from spatial_circuits.analyses.token_exchange import donors, hybrids
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model import transformer as dit
from spatial_circuits.text.random_tokens import FusedTokenEncoder

PROMPTS = prompt_set("264")[:4]
pytestmark = pytest.mark.usefixtures("one_thread")
PLANTED = [(0, 2), (2, 1)]


@pytest.fixture
def fusing(tiny):
    """The untrained model with an encoder that writes the relation onto the second shape's token."""
    return replace(tiny, encoder=FusedTokenEncoder(1.0))


@pytest.fixture
def planted(fusing, monkeypatch):
    """3 layers of 4 heads, of which two write."""
    monkeypatch.setitem(dit.SIZES, "grove", (3, 4, 8))
    net = dit.build_transformer("grove", fusing.encoder.dim, 3)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(net.proj_out.weight, std=0.3, generator=generator)
    for layer, block in enumerate(net.transformer_blocks):
        torch.nn.init.normal_(block.attn2.to_out[0].weight, std=0.3, generator=generator)
        for head in range(4):
            if (layer, head) not in PLANTED:
                block.attn2.to_out[0].weight.data[:, head * 8:(head + 1) * 8] = 0
    return replace(fusing, transformer=net.eval().requires_grad_(False))


def test_a_doubled_text_holds_both_tokens_and_says_which(fusing):
    given = donors(PROMPTS)["turned"]
    made = doubled(fusing, PROMPTS, given, "relation")
    text = made.text.encode([str(i) for i in range(len(PROMPTS))])
    plain = fusing.encoder.encode([*PROMPTS, *given])
    for i in range(len(PROMPTS)):
        for keys, row in ((made.mine, i), (made.theirs, i + len(PROMPTS))):
            wanted = [plain.embeddings[row, t] for t, r in enumerate(plain.roles[row]) if r == "relation"]
            assert torch.equal(text.embeddings[i, keys[i]], torch.stack(wanted))
        assert int(text.mask[i].sum()) == int(plain.mask[i].sum()) + int(made.theirs[i].sum())
    with pytest.raises(ValueError, match="holds no token of role colour1"):
        doubled(fusing, ["square is above blue circle"], ["square is below blue circle"], "colour1")


def test_all_heads_that_read_the_donor_are_the_hybrid_and_none_the_prompt(fusing):
    """In latents after sampling: to hide a token is as if it were not there."""
    given = donors(PROMPTS)["opposite"]
    made, sets = doubled(fusing, PROMPTS, given, "shape2"), [heads_of(fusing), []]
    from spatial_circuits.hooks.run import run
    doubles = replace(fusing, encoder=made.text)
    names = [str(i) for i in range(len(PROMPTS)) for _ in sets]
    ours = run(doubles, names, [s // 2 for s in range(8)], *made.hidden(sets, fusing), steps=2)
    mixed = replace(fusing, encoder=hybrids(fusing.encoder, PROMPTS, given, ["shape2"] * 4))
    theirs = mixed.latents([str(i) for i in range(4)], list(range(4)), steps=2)
    plain = fusing.latents(PROMPTS, list(range(4)), steps=2)
    assert torch.allclose(ours[::2], theirs, atol=1e-4) and torch.allclose(ours[1::2], plain, atol=1e-4)
    assert (theirs - plain).abs().max() > 1e-2


def test_the_planted_readers_are_found_and_they_alone(planted):
    given = donors(PROMPTS)["opposite"]
    sets = {**named_heads(heads_of(planted)), "both": PLANTED}
    found = reading_effects(planted, PROMPTS, given, "shape2", sets, steps=4, every=2).mean()
    assert found["both"] > 0.999
    assert set(found.drop("both").nlargest(2).index) == {"L0H2", "L2H1"}
    assert found.drop(["both", "L0H2", "L2H1"]).abs().max() < 1e-4
    table = find_readers(planted, PROMPTS, "shape2", target=0.99, steps=4, every=2)
    assert sorted(table["head"]) == PLANTED and table["effect"].iloc[-1] > 0.99
    roles = shared_roles(planted, PROMPTS, PLANTED, steps=4, every=2)
    assert list(roles.index) == ["L0H2", "L2H1"] and roles["shape"].max() > 0.1


def test_where_no_token_is_fused_nobody_reads_it(tiny):
    """With random tokens shape2 says nothing of the relation, whatever the donor."""
    given = donors(PROMPTS)["opposite"]
    with pytest.raises(ValueError, match="whichever shape2 it reads"):
        reading_effects(tiny, PROMPTS, given, "shape2", named_heads(heads_of(tiny)), steps=1)


def test_every_set_of_heads_draws_its_pictures(fusing):
    frame = turn_pictures(fusing, PROMPTS[:2], "shape2", [(0, 1)], draws=3, steps=1)
    names = [NO_HEAD, EVERY_HEAD, READERS, OTHERS, *(f"{RANDOM_SET} {i}" for i in (1, 2, 3))]
    assert list(frame["condition"]) == names * 4 and list(frame["kind"]) == ["opposite"] * 14 + ["turned"] * 14
    assert set(frame["original"]) == set(PROMPTS[:2])
    told = frame.groupby("kind")["prompt"].unique()
    assert set(told["opposite"]) == set(donors(PROMPTS[:2])["opposite"])
    with pytest.raises(ValueError, match="0 readers and 3 draws; give at least one of each"):
        turn_pictures(fusing, PROMPTS[:2], "shape2", [], draws=3)


def made(turned: dict[str, float], prompts: int = 20, draws: int = 99) -> pd.DataFrame:
    """A frame in which a share of the pictures turns by condition."""
    shares = {NO_HEAD: 0.0, EVERY_HEAD: 1.0, **turned, **{f"{RANDOM_SET} {i}": 0.1 for i in range(draws)}}
    return pd.DataFrame([{"kind": kind, "condition": c, "original": str(i), "axis": i < share * prompts,
                          "side": i < share * prompts} for kind in ("opposite", "turned")
                         for i in range(prompts) for c, share in shares.items()])


def test_shares_by_hand():
    found = turned_shares(made({READERS: 0.6, OTHERS: 0.2})).set_index(["part", "heads"])
    row = found.loc[("side", READERS)]
    assert row["share"] == pytest.approx(0.6) and row["of_all"] == pytest.approx(0.6) and row["prompts"] == 20
    assert row["low"] == pytest.approx(0.387, abs=1e-3) and row["p"] == pytest.approx(2 / 100)  # Holm over the two parts
    assert found.loc[("axis", RANDOM_SET), "share"] == pytest.approx(0.1)
    assert np.isnan(found.loc[("side", OTHERS), "p"])
    idle = turned_shares(made({READERS: 0.1, OTHERS: 0.9})).set_index(["part", "heads"])
    assert idle.loc[("side", READERS), "p"] == 1
    deaf = turned_shares(made({READERS: 0.0, OTHERS: 0.0, EVERY_HEAD: 0.0})).set_index(["part", "heads"])
    assert deaf["p"].isna().all() and deaf["of_all"].isna().all()       # there is nothing to turn
