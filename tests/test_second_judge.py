"""The second judge: right on renders, and wrong where a picture is."""
import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_circuits.analyses import second_judge
from spatial_circuits.analyses.second_judge import (
    judges_agree,
    sampled_agreement,
    second_scores,
    things,
)
from spatial_circuits.data.captions import captions
from spatial_circuits.data.metrics import METRICS
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import COLORS, SHAPES, sample_scenes

SCENES = sample_scenes(torch.arange(200), 5)
IMAGES, TOLD = render(SCENES), captions(SCENES)


def test_it_shares_no_rule_with_the_detector():
    tree = ast.parse(Path(second_judge.__file__).read_text())
    used = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert "cv2" not in used and not any("detect" in name for name in used)


def test_it_finds_the_objects_of_true_scenes():
    for found, shape, color, xy in zip(things(IMAGES), SCENES.shape, SCENES.color, SCENES.xy):
        wanted = {(SHAPES[s], COLORS[c], *map(int, p)) for s, c, p in zip(shape, color, xy)}
        got = {(t.shape, t.color, round(t.x), round(t.y)) for t in found}
        assert len(found) == 2 and {g[:2] for g in got} == {w[:2] for w in wanted}
        for one in found:
            assert min(abs(one.x - w[2]) + abs(one.y - w[3]) for w in wanted) < 1.5


def test_true_scenes_pass_and_exchanged_ones_fail_where_they_should():
    right = second_scores(IMAGES, TOLD)
    assert (right.mean() > 0.99).all()
    moved = second_scores(render(SCENES.replace(xy=SCENES.xy.flip(1))), TOLD)
    assert moved["unique_binding"].mean() > 0.99 and moved["loose"].mean() < 0.01
    one_color = second_scores(render(SCENES.replace(color=SCENES.color * 0)), TOLD)
    said = np.array([("red" in t and "blue" in t) for t in TOLD])
    assert not one_color["color"][said].any() and one_color["shape"].mean() > 0.99


def test_an_empty_or_noisy_picture_holds_nothing():
    noise = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))
    grey = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    assert not second_scores(torch.cat([noise, grey]), TOLD[:3]).any().any()


def test_both_judges_agree_on_renders():
    table = judges_agree(IMAGES, TOLD)
    assert list(table.index) == list(METRICS) and (table["same"] > 0.99).all()


def test_a_disagreement_is_seen(monkeypatch):
    monkeypatch.setattr(second_judge, "second_scores",
                        lambda images, prompts: second_scores(images, prompts) & False)
    table = judges_agree(IMAGES[:20], TOLD[:20])
    assert (table["same"] == 0).all() and (table["second judge"] == 0).all()


def test_a_prompt_that_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="must name two shapes"):
        second_scores(IMAGES[:1], ["a red square"])


def test_pictures_of_a_model_are_judged_by_both(tiny):
    table = sampled_agreement(tiny, TOLD[:3], [0, 1, 2])
    assert table["same"].between(0, 1).all() and list(table.index) == list(METRICS)
