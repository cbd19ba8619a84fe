"""Cost of the study of the text: variance partition, weight-space screening with factors, the robustness table."""
import pytest

from spatial_circuits.analyses.factors import (
    labels,
    partition,
    relation_effects,
    screen_effects,
    token_vectors,
)
from spatial_circuits.analyses.robustness import robustness
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load
from spatial_circuits.text.wordings import FAMILIES

PROMPTS = prompt_set("264")


@pytest.fixture(scope="module")
def net():
    return load("t5-untrained")


def test_partition_of_264_prompts_with_1000_permutations(benchmark, net):
    vectors, factors = token_vectors(net.encoder, PROMPTS, "shape2"), labels(PROMPTS, "shape2")
    found = benchmark.pedantic(partition, (vectors, factors, 1000), rounds=3)
    assert found.table["p"].min() < 0.01


def test_screening_all_heads_with_1000_permutations(benchmark, net):
    vectors = token_vectors(net.encoder, PROMPTS, "shape2", net.transformer)
    effects = relation_effects(partition(vectors, labels(PROMPTS, "shape2"), 0))
    assert len(benchmark.pedantic(screen_effects, (net.transformer, effects, 1000), rounds=3)) == 24


def test_robustness_table(benchmark, net):
    """Twelve wordings of 22 prompts; the table of 264 prompts takes 12 times as long."""
    frame = benchmark.pedantic(robustness, (net.fast(), PROMPTS[:22], list(FAMILIES)[:12]), rounds=1)
    assert len(frame) == 12 * 22
