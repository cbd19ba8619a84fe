"""Captions: the 22 phrases, their index, and the parse of every template of the authors'."""
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from spatial_circuits.data.captions import (
    CAPTION_COUNT,
    PHRASE_RELATION,
    PHRASES,
    ROLES,
    all_captions,
    caption_index,
    captions,
    parse,
)
from spatial_circuits.data.scenes import COLORS, PRESETS, RELATIONS, SHAPES, sample_scenes

TEMPLATES = ("{a} is {r} {b}", "{a} {r} {b}", "{a} {r} the {b}", "{a} is {r} the {b}",
             "the {a} is {r} the {b}",
             "{r} {b} is {a}", "{r} the {b} is {a}", "{r} the {b} is the {a}")
STYLES = {"plain": str, "capitals": str.upper, "sentence": lambda s: s.capitalize() + ".",
          "double spaces": lambda s: "  " + s.replace(" ", "  ")}


def test_phrases_are_the_authors():
    found = {r: [p for p, i in zip(PHRASES, PHRASE_RELATION) if RELATIONS[i] == r]
             for r in RELATIONS}
    assert found == {
        "above": ["above", "directly above", "higher than"],
        "below": ["below", "directly below", "lower than"],
        "left": ["to the left of", "left of"],
        "right": ["to the right of", "right of"],
        "upper_left": ["to the upper left of", "above and to the left of",
                       "diagonally up and left from"],
        "upper_right": ["to the upper right of", "above and to the right of",
                        "diagonally up and right from"],
        "lower_left": ["to the lower left of", "below and to the left of",
                       "diagonally down and left from"],
        "lower_right": ["to the lower right of", "below and to the right of",
                        "diagonally down and right from"],
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_caption_index_finds_each_scene_s_caption(preset):
    scenes = sample_scenes(torch.arange(3000), preset=preset)
    table = all_captions()
    assert [table[i] for i in caption_index(scenes)] == captions(scenes)


def test_caption_index_is_one_to_one():
    row = torch.arange(CAPTION_COUNT)
    named, color, pair, phrase = row % 4, row // 4 % 2, row // 8 % 6, row // 48
    one = pair // 2
    scenes = sample_scenes(row, phrase=phrase,
                           shape=torch.stack([one, (one + pair % 2 + 1) % 3], 1),
                    color=torch.stack([color, 1 - color], 1),
                           named=torch.stack([named >= 2, named % 2 == 1], 1))
    assert torch.equal(caption_index(scenes), row)
    assert captions(scenes) == all_captions()
    # with no colour word spoken, the order of colours is not told
    assert len(set(all_captions())) == 22 * 6 * 7


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_parse_reads_every_template(template, style):
    for k, phrase in enumerate(PHRASES):
        (s1, s2), c1 = ((0, 1), (1, 2), (2, 0), (1, 0))[k % 4], k % 2
        one, two = f"{COLORS[c1]} {SHAPES[s1]}", f"{COLORS[1 - c1]} {SHAPES[s2]}"
        prompt = STYLES[style](template.format(a=one, r=phrase, b=two))
        said = parse(prompt)
        assert (said.shape, said.color, said.phrase) == ([s1, s2], [c1, 1 - c1], k), prompt
        assert said.relation == PHRASE_RELATION[k]
        words = {role: " ".join(prompt[a:b].lower().split()) for a, b, role in said.spans}
        assert words == {"colour1": COLORS[c1], "shape1": SHAPES[s1], "relation": phrase,
                         "colour2": COLORS[1 - c1],
                         "shape2": SHAPES[s2]}


@pytest.mark.parametrize("prompt, shape, color, relation", [
    ("square is above circle", [1, 0], [None, None], "above"),
    ("square is left of blue circle", [1, 0], [None, 1], "left"),
    ("red square is lower than circle", [1, 0], [0, None], "below"),
    ("crimson square is above navy circle", [1, 0], [0, 1], "above"),
    ("red is above blue", [None, None], [0, 1], "above"),
    ("red is above blue square", [None, 1], [0, 1], "above"),
    ("red circle is above blue", [0, None], [0, 1], "above"),
    ("triangle is to the left of triangle", [2, 2], [None, None], "left"),
    ("blue circle and red square", [0, 1], [1, 0], None),
    ("circle", [0, None], [None, None], None),
    ("above", [None, None], [None, None], "above"),
    ("", [None, None], [None, None], None),
    ("there is blue circle and red square is above it", [1, 0], [0, 1], "above"),
    ("There is a circle; the red square is to the left of it.", [1, 0], [0, None], "left"),
    ("there is blue circle and above it is red square", [1, 0], [0, 1], "above"),
    ("there is blue circle and above it there is red square", [1, 0], [0, 1], "above"),
    ("blue circle, red square above", [1, 0], [0, 1], "above"),
    ("red square is above it, blue circle", [1, 0], [0, 1], "above"),
    ("triangle, blue circle and red square is above it", [1, 0], [0, 1], "above"),
    ("blue triangle and square is above red circle", [1, 0], [None, 0], "above"),
    ("the square, red, is above the circle, blue", [1, 0], [0, 1], "above"),
    ("blue sqaure and red circle is above it", [0, None], [0, 1], "above"),
])
def test_parse_of_incomplete_prompts(prompt, shape, color, relation):
    said = parse(prompt)
    assert (said.shape, said.color) == (shape, color)
    assert (None if said.relation is None else RELATIONS[said.relation]) == relation


@pytest.mark.parametrize("phrase", PHRASES)
def test_in_clauses_each_word_has_the_role_of_its_own_object(phrase):
    prompt = f"there is blue circle and red square is {phrase} it"
    words = {role: prompt[a:b] for a, b, role in parse(prompt).spans}
    assert words == {"colour2": "blue", "shape2": "circle", "colour1": "red", "shape1": "square",
                     "relation": phrase}
    assert len(parse(prompt).spans) == 5


@given(st.one_of(st.text(), st.lists(st.sampled_from(["red", "Blue", "circle", "square", "is",
                                                      "the", "above", "to the",
                                                      "left of", "and", ".",
                                                      "squares"])).map(" ".join)))
@example("cırcle is dırectly above ſquare")  # these letters equal i and s where case is ignored
def test_parse_never_raises_and_spans_do_not_overlap(prompt):
    spans = parse(prompt).spans
    assert all(0 <= a < b <= len(prompt) and role in ROLES for a, b, role in spans)
    assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:]))


def test_role_of_characters():
    said = parse("red square is above circle")
    assert [said.role(*span)
            for span in ((0, 3), (4, 6), (6, 10), (11, 13), (14, 19), (20, 26), (3, 4))] == \
        ["colour1", "shape1", "shape1", "filler", "relation", "shape2", "filler"]
