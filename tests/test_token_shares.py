"""Token shares: what part of the relation's effect on the prediction each token carries."""
import pytest
import torch
from torch import nn

from spatial_circuits.analyses.token_exchange import donors
from spatial_circuits.analyses.token_shares import DONOR_OF, SETS, TokenShares
from spatial_circuits.data.captions import captions
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.model.store import load
from spatial_circuits.text.encoders import encoder

COUNT = 16


class Bag(nn.Module):
    """Reads its text as a bag of embeddings: the picture is a linear map of their sum."""

    def __init__(self, dim, readout):
        super().__init__()
        self.map = nn.Parameter(torch.randn(dim, 4 * 256, generator=torch.Generator().manual_seed(0)))
        self.readout = readout

    def forward(self, latents, *, encoder_hidden_states, encoder_attention_mask, **_):
        words = (encoder_hidden_states * encoder_attention_mask[..., None]).sum(1)
        return ((self.readout(words) @ self.map).view(-1, 4, 16, 16),)


@pytest.fixture(scope="module")
def model():
    return load("rte")


def told():
    scenes = sample_scenes(torch.arange(COUNT), 90_001, named=torch.ones(COUNT, 2, dtype=torch.bool))
    return captions(scenes)


def expected(coder, net, kind, tokens):
    """The share of a bag of words, from the sums of the embeddings of the roles."""
    own, given = (coder.encode(list(prompts)) for prompts in (told(), donors(told())[kind]))

    def total(text, wanted):
        chosen = torch.tensor([[role in wanted for role in row] for row in text.roles])
        return (text.embeddings * (chosen & text.mask)[..., None]).sum(1)
    roles = {role for row in own.roles for role in row} - {"pad"}
    wanted = set(tokens.split("+"))
    right, wrong = total(own, roles), total(given, roles)
    hybrid = total(own, roles - wanted) + total(given, wanted)
    seen = [net.readout(words) @ net.map for words in (right, wrong, hybrid)]
    return (1 - (seen[2] - seen[1]).square().sum() / (seen[0] - seen[1]).square().sum()).item()


def nothing_lost(words):
    return words


def bent(words):
    return words.relu()


@pytest.mark.parametrize("readout", [nothing_lost, bent])
def test_shares_of_a_bag_of_words_are_those_of_its_sums(model, readout):
    coder = encoder("rte-fused", dose=0.5)
    net = Bag(coder.dim, readout)
    table = TokenShares(coder, model.vae, model.noise, count=COUNT).of(net)
    assert len(table) == 2 * len(SETS)
    for row in table.itertuples():
        assert row.share == pytest.approx(expected(coder, net, DONOR_OF[row.part], row.tokens), abs=1e-4)
        assert row.low <= row.share <= row.high and row.moved > 0
    side = table[table["part"] == "side"].set_index("tokens")["share"]
    assert 0.05 < side["shape2"] < side["relation"] < 0.99 and side["relation+shape2"] > 0.99
    assert abs(side["shape1"]) < 1e-6


def test_the_model_of_random_tokens_takes_all_from_the_relation_word(model):
    table = TokenShares(model.encoder, model.vae, model.noise, ["relation", "shape2"], count=COUNT).of(model.transformer)
    shares = table.pivot(index="part", columns="tokens", values="share")
    assert (shares["relation"] > 0.95).all() and (shares["shape2"].abs() < 0.05).all()


@pytest.mark.parametrize("given, message", [
    ({"time": 0}, "time is 0"), ({"time": 1.5}, "time is 1.5"), ({"count": 1}, "count 1"),
    ({"sets": ["relation", "verb"]}, "role 'verb' is unknown; choose from")])
def test_refusals(model, given, message):
    with pytest.raises(ValueError, match=message):
        TokenShares(model.encoder, model.vae, model.noise, **given)
