"""Geometry of embeddings: the linear probe against its definition, and what retellings move."""
import numpy as np
import pytest
import torch

from spatial_circuits.analyses.embeddings import (
    CAPTION_POSITIONS,
    corpus,
    cosines,
    displacement,
    linear_probe,
    position_parts,
)
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.text.encoders import encoder


def by_hand(x, label, group, ridge):
    """Accuracy of ridge regression on one-hot labels, each group held out."""
    x, target, hit = x.double(), torch.nn.functional.one_hot(label).double(), torch.zeros(len(x))
    for held in group.unique():
        train, test = group != held, group == held
        mean, base = x[train].mean(0), target[train].mean(0)
        inputs = x[train] - mean
        penalty = ridge * inputs.square().sum() / x.shape[1] * torch.eye(x.shape[1]).double()
        weight = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (target[train] - base))
        hit[test] = (((x[test] - mean) @ weight + base).argmax(1) == label[test]).float()
    return hit.mean().item()


@pytest.mark.parametrize("classes, ridge", [(2, 0.1), (5, 0.1), (5, 10.0)])
def test_the_probe_is_ridge_regression_on_one_hot_labels(classes, ridge):
    generator = torch.Generator().manual_seed(classes)
    label = torch.randint(classes, (120,), generator=generator)
    x = torch.randn(120, 12, generator=generator)
    x[:, :classes] += 1.5 * torch.nn.functional.one_hot(label).float()
    group = torch.arange(120) % 4
    found = linear_probe(x, label, group, ridge)
    assert found.accuracy == pytest.approx(by_hand(x, label, group, ridge), abs=1e-6)
    assert found.low <= found.accuracy <= found.high and found.high - found.low < 0.25
    assert found.accuracy > 1 / classes


@pytest.mark.parametrize("change, message", [
    ({"group": torch.zeros(6)}, "at least 2 groups"), ({"label": torch.zeros(6).long()}, "at least 2 labels"),
    ({"group": torch.arange(5)}, "5 groups for 6 vectors"),
    ({"x": torch.full((6, 2), torch.nan)}, "x holds a number that is not finite")])
def test_what_cannot_be_probed_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(**{"x": torch.randn(6, 2), "label": torch.arange(6) % 2, "group": torch.arange(6) % 3} | change)


def test_cosines_and_position_parts():
    x = torch.tensor([[3.0, 0], [0, 2], [1, 1]])
    assert torch.allclose(cosines(x)[0], torch.tensor([1, 0, 0.5 ** 0.5])) and cosines(x, x[:1]).shape == (3, 1)
    parts = position_parts(torch.ones(20, 8))
    assert parts["share"] == 0 and parts["neighbour"] == pytest.approx(1) and CAPTION_POSITIONS == 12


def test_without_a_position_code_nothing_moves_a_word():
    scenes = sample_scenes(torch.arange(20), 1, named=torch.ones(20, 2, dtype=torch.bool))
    assert displacement(encoder("rte-nopos"), scenes).max(axis=None) == 0
    moved = displacement(encoder("rte"), scenes)
    assert moved["relation reversed"].max() == 0 and moved["colour dropped"].min() > 0


def test_the_corpus_holds_every_caption_once():
    table = corpus()
    assert table["caption"].is_unique and set(np.unique(table["relation"])) == set(range(8))
