"""Repairs change what they say and nothing else, and bring a known shift back exactly."""
import pytest
import torch

from spatial_circuits.analyses.repair import (
    CONTENT,
    METHODS,
    dropped,
    learn,
    mean_shifts,
    repair,
    repaired,
)
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load
from spatial_circuits.text.encoders import encoder
from spatial_circuits.text.roles import occurrences
from spatial_circuits.text.wordings import reworded

PROMPTS = prompt_set("264")
MANY, FEW = PROMPTS[:200], PROMPTS[200:204]


@pytest.fixture(scope="module")
def minilm():
    return encoder("minilm")


@pytest.fixture(scope="module")
def wording(minilm):
    return learn(minilm, MANY)


def vectors(batch, role):
    row, place = occurrences(batch, role)
    return batch.embeddings[row, place]


def test_directions_are_orthonormal_and_lie_in_what_varied(wording):
    for role in CONTENT:
        for v in (wording.basis[role], wording.span[role]):
            torch.testing.assert_close(v @ v.T, torch.eye(len(v)), atol=1e-4, rtol=0)
        assert wording.span[role].shape[0] == 7 and wording.basis[role].shape[0] < len(MANY)


def test_random_tokens_are_rebuilt_exactly(rte):
    """Without context the first words have nothing but their factors; a rebuilt token is the token."""
    text, known = rte.encode(FEW), learn(rte, MANY)
    new = repaired(text, FEW, "restore", known, {})
    for role in ("colour1", "shape1", "relation"):
        torch.testing.assert_close(vectors(new, role), vectors(text, role), atol=1e-3, rtol=0)


def test_the_shift_is_taken_away_on_the_average(minilm, wording):
    moved = mean_shifts(minilm, MANY, "lead-in")
    said = reworded(MANY, "lead-in")
    text = minilm.encode(said)
    new = repaired(text, said, "shift", wording, moved)
    for role in CONTENT:
        torch.testing.assert_close(vectors(new, role).mean(0), wording.mean[role], atol=1e-3, rtol=0)
        assert (vectors(text, role).mean(0) - wording.mean[role]).norm() > 0.1


def test_the_relation_repair_removes_that_part_alone(minilm, wording):
    moved = mean_shifts(minilm, MANY, "lead-in")
    text = minilm.encode(reworded(FEW, "lead-in"))
    new = repaired(text, FEW, "relation", wording, moved)
    for role in CONTENT:
        change, span = vectors(new, role) - vectors(text, role), wording.span[role]
        torch.testing.assert_close(change, (-(moved[role] @ span.T) @ span).expand_as(change), atol=1e-4, rtol=0)


def test_projecting_keeps_the_training_wording_and_shortens_others(minilm, wording):
    far = {}
    for family in ("T0", "lead-in"):
        text = minilm.encode(reworded(FEW, family))
        new = repaired(text, FEW, "project", wording, {})
        far[family] = float((vectors(new, "shape2") - vectors(text, "shape2")).norm(dim=1).mean())
    assert far["T0"] < far["lead-in"] / 2
    twice = repaired(new, FEW, "project", wording, {})
    torch.testing.assert_close(twice.embeddings, new.embeddings, atol=1e-4, rtol=0)


def test_only_strange_fillers_are_hidden(minilm, wording):
    said = reworded(FEW, "lead-in")
    text = minilm.encode(said)
    new = repaired(text, said, "hide", wording, {})
    hidden = [t for row, a, b in zip(text.tokens, text.mask, new.mask) for t, x, y in zip(row, a, b) if x and not y]
    assert set(hidden) == {"in", "picture"} | ({"the"} - wording.fillers)
    assert torch.equal(new.embeddings, text.embeddings)


@pytest.mark.parametrize("family", ["T3 the", "T4 the, the", "lead-in"])
def test_without_strange_fillers_the_training_wording_is_left(family):
    assert [dropped(p, MANY[:1]) for p in reworded(FEW, family)] == FEW


def test_a_repair_of_nothing_changes_no_picture():
    frame = repair(load("minilm"), FEW[:2], "T0", MANY[:100], ("hide", "drop", "shift"), steps=2)
    assert list(frame["condition"][:6]) == ["T0", "reworded", "T0 + hide", "hide", "T0 + drop", "drop"]
    for _, rows in frame.groupby("prompt"):
        assert rows[["shape", "color", "loose"]].nunique().max() == 1


def test_what_cannot_be_repaired_is_refused(minilm, wording):
    with pytest.raises(ValueError, match=f"'pray' is unknown; choose from {', '.join(METHODS)}"):
        repaired(minilm.encode(FEW), FEW, "pray", wording, {})
    with pytest.raises(ValueError, match="both scored and used for calibration"):
        repair(load("minilm"), FEW, "T0", PROMPTS)
