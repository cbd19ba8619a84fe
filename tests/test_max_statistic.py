"""The max statistic finds a planted head among 448, where Bonferroni cannot, and few others."""
import numpy as np
import pytest
import torch

from spatial_circuits.analyses.max_statistic import head_p, stepdown_p
from spatial_circuits.analyses.synopsis import smallest_p
from spatial_circuits.data.captions import ROLES

CONTENT = [ROLES.index(r) for r in ("colour1", "shape1", "relation", "colour2", "shape2")]
RELATION, SHAPE1, SHAPE2 = (ROLES.index(r) for r in ("relation", "shape1", "shape2"))


def attention(prompts, seed, layers=28, heads=16, lacks=()):
    """Attention [P, L, H, 3, R] of heads that care for no word: shares at random, some heads noisier than others; and the
    roles held."""
    rng = np.random.default_rng(seed)
    held = torch.ones(prompts, len(ROLES), dtype=torch.bool)
    held[:, [ROLES.index(role) for role in lacks]] = False
    noise = rng.lognormal(0, 1, (1, layers, heads, 1, 1))
    shares = rng.gamma(1.0, size=(prompts, layers, heads, 3, len(ROLES))) * noise * 0.05
    return torch.from_numpy(shares) * held[:, None, None, None], held


def test_one_head_among_448_is_found_where_bonferroni_cannot():
    table, held = attention(24, 0)
    table[:, 11, 3, :2, RELATION] += 0.1
    table[:, 20, 7, 0, SHAPE1] += 0.15
    table[:, 20, 7, 1, SHAPE2] += 0.15
    assert smallest_p(448, 299) >= 1 and smallest_p(448) > 0.2
    found = head_p(table, held, n=299)
    assert found["relation"].shape == (28, 16)
    assert (found["relation"] < 0.05).nonzero().tolist() == [[11, 3]] and found["relation"][11, 3] <= 0.02
    assert (found["object"] < 0.05).nonzero().tolist() == [[20, 7]]


def test_a_word_that_is_not_there_makes_no_head_special():
    wrong = blind = 0
    for seed in range(12):
        table, held = attention(32, seed, 4, 4, ("colour1", "colour2"))
        table[..., CONTENT] += 0.5 * held[:, None, None, None, CONTENT]     # all words that are there, alike
        wrong += float(head_p(table, held, n=59)["relation"].min()) < 0.05
        blind += float(head_p(table, torch.ones_like(held), n=59)["relation"].max()) < 0.05  # without `held`
    assert wrong <= 3 and blind == 12


def test_false_heads_are_as_rare_as_said():
    wrong = [min(float(p.min()) for p in head_p(*attention(12, seed, 4, 8), n=59, seed=seed).values()) < 0.05
             for seed in range(40)]
    assert sum(wrong) <= 9                                              # two families at .05: 4 expected


def test_p_values_are_those_counted_by_hand():
    null = np.array([[0., 4], [1, 5], [2, 0], [3, 1]])
    p = stepdown_p(np.array([9., 3]), null)
    both = np.vstack([[9, 3], null])
    z = (both - both.mean(0)) / both.std(0)
    assert p[0] == np.mean(z.max(1) >= z[0, 0]) == 0.2
    assert p[1] == max(0.2, np.mean(z[:, 1] >= z[0, 1]))


def test_what_cannot_be_tested_is_refused():
    table, held = attention(2, 0, 1, 1)
    with pytest.raises(ValueError, match="n = 0"):
        head_p(table, held, n=0)
    with pytest.raises(ValueError, match="0 prompts"):
        head_p(table[:0], held[:0])
    with pytest.raises(ValueError, match=r"must be \[n, 3\]"):
        stepdown_p(np.zeros(3), np.zeros((4, 2)))
