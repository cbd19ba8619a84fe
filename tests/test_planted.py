"""Ground truth: in a model whose text comes in by planted heads alone, every method finds them, and nothing else.

All cross-attention heads but the planted ones write zero, so that nothing of the prompt reaches the prediction by another way. The relation
head of layer 0 moves the query of the object head of layer 2; the heads in between are silent.
"""
import pytest
from planting import grove

from spatial_circuits.analyses.attribution import attribute
from spatial_circuits.analyses.heads import head_name, heads_of, named_heads
from spatial_circuits.analyses.patching import greedy_patching, prediction_effects, query_shares
from spatial_circuits.data.metrics import prompt_set

PROMPTS = prompt_set("264")[:6]
PLANTS = ([(0, 2), (2, 1)], [(0, 0), (2, 3)], [(1, 1)])
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=PLANTS, ids=lambda heads: "+".join(head_name(*h) for h in heads))
def planted(request, tiny, monkeypatch):
    """An untrained model of 3 layers of 4 heads, and the heads that write."""
    return grove(tiny, monkeypatch, request.param), request.param


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_finds_the_planted_heads_and_them_alone(planted, direction):
    net, heads = planted
    sets = named_heads(heads_of(net))
    effect = prediction_effects(net, PROMPTS, "relation", sets, direction, steps=4).mean()
    names = [head_name(*h) for h in heads]
    assert set(effect.nlargest(len(heads)).index) == set(names)
    # noising asks what is left without a head: nothing is lost without a silent one
    assert effect.drop(names).abs().max() < 1e-4 < effect[names].abs().max()
    whole = prediction_effects(net, PROMPTS, "relation", {"planted": heads}, direction, steps=4)
    assert whole["planted"].min() > 0.999


def test_attribution_finds_them_and_them_alone(planted):
    net, heads = planted
    found = attribute(net, PROMPTS, "relation", steps=4).mean()
    cross = found[[head_name(*h) for h in heads_of(net)]]
    names = [head_name(*h) for h in heads]
    assert set(cross.abs().nlargest(len(heads)).index) == set(names)
    assert cross.drop(names).abs().max() == 0
    first = min(layer for layer, _ in heads)
    before = [f"L{i}MLP" for i in range(first)] + [f"L{i}S{h}" for i in range(first + 1) for h in range(4)]
    assert found[before].abs().max() < 1e-6            # the text has not come in yet


def test_greedy_search_ends_with_them(planted):
    net, heads = planted
    found = greedy_patching(net, PROMPTS, "relation", target=0.99, steps=4)
    assert sorted(found["head"]) == sorted(heads) and found["effect"].iloc[-1] > 0.99


@pytest.mark.parametrize("planted", PLANTS[:2], indirect=True)
def test_only_the_planted_relation_head_turns_the_query(planted):
    net, (sender, receiver) = planted
    silent = [(0, h) for h in range(4) if (0, h) != sender]
    assert query_shares(net, PROMPTS, "relation", [sender], receiver)["all paths"].min() > 0.99
    assert query_shares(net, PROMPTS, "relation", silent, receiver)["all paths"].abs().max() < 1e-5
