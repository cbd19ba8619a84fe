"""Any two noun phrases and a relation: T2I-CompBench's spatial prompts, the training template, and what is refused."""
import pytest

from spatial_circuits.data.captions import parse
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import COLORS, RELATIONS, SHAPES
from spatial_circuits.text.counterparts import counterpart
from spatial_circuits.text.parser import RELATION_WORDS, opposed, read_spatial, spoken


@pytest.mark.parametrize(("prompt", "one", "relation", "two"), [
    ("a balloon on the top of a giraffe", "balloon", "above", "giraffe"),          # as in T2I-CompBench
    ("a vase on the bottom of a book", "vase", "below", "book"),
    ("a bee on the right of a bird", "bee", "right", "bird"),
    ("a cat on the left of a chair", "cat", "left", "chair"),
    ("a man next to a train", "man", "near", "train"),
    ("a woman near a sofa", "woman", "near", "sofa"),
    ("a desk on side of a candle", "desk", "near", "candle"),
    ("a chicken in front of a key", "chicken", "front", "key"),
    ("a rabbit behind a computer", "rabbit", "behind", "computer"),
    ("a rabbit hidden by a bowl", "rabbit", "behind", "bowl"),
    ("A photo of a small wooden chair sitting to the left of the big red dog in a garden.", "small wooden chair",
     "left", "big red dog"),
    ("a T-shirt is under an umbrella, at night", "t-shirt", "below", "umbrella"),
    ("a fox to the upper left of a hat", "fox", "upper_left", "hat"),
    ("a red square clock above a blue circle", "red square clock", "above", "blue circle"),
    ("red square is diagonally up and left from circle", "red square", "upper_left", "circle"),
    ("above blue circle is red square", "red square", "above", "blue circle"),      # inverted
    ("there is blue circle and above it is red square", "red square", "above", "blue circle")])
def test_two_things_and_their_relation_are_read(prompt, one, relation, two):
    said = read_spatial(prompt)
    assert (said.nouns, said.relation) == ((one, two), relation)
    whole = {role: " ".join(prompt[a:b] for a, b, r in said.spans if r == role).lower() for _, _, role in said.spans}
    assert one.endswith(whole["shape1"]) and two.endswith(whole["shape2"])
    assert whole.get("colour1", "") == " ".join(one.split()[:-1])


@pytest.mark.parametrize("prompt", prompt_set("264")[:44] + prompt_set("96")[:8])
def test_training_captions_are_read_as_ever(prompt):
    said, ours = read_spatial(prompt), parse(prompt)
    assert said.spans == ours.spans and said.relation == RELATIONS[ours.relation]
    assert said.nouns[0] == f"{COLORS[ours.color[0]]} {SHAPES[ours.shape[0]]}"


@pytest.mark.parametrize(("relation", "side"), [
    ("above", (0, -1)), ("under", (0, 1)), ("to the left of", (-1, 0)), ("to the lower right of", (1, 1)), ("near", None)])
def test_the_side_is_that_of_the_first_thing(relation, side):
    assert read_spatial(f"a cup {relation} a dog").side == side


@pytest.mark.parametrize("prompt", [
    "a dog", "a dog and a cat", "on the left of a cat", "a dog on the left of", "", "a dog is above it", "a dog leftover"])
def test_a_prompt_without_two_things_is_refused_by_name(prompt):
    with pytest.raises(ValueError, match=f"prompt '{prompt}' does not say two things and a relation"):
        read_spatial(prompt)
    assert "shape2" not in [r for _, _, r in spoken(prompt).spans]


def test_phrases_are_unique():
    phrases = [p for group in RELATION_WORDS.values() for p in group]
    assert len(set(phrases)) == len(phrases)


def test_the_opposite_of_the_books_prompts_is_their_counterpart():
    for prompt in [*prompt_set("264"), *prompt_set("96")]:
        assert opposed(prompt) == counterpart(prompt, "relation")


AGAINST = {"above": "below", "below": "above", "left": "right", "right": "left", "front": "behind", "behind": "front"}


@pytest.mark.parametrize(("relation", "phrase"), [(r, p) for r, phrases in RELATION_WORDS.items() for p in phrases])
def test_every_phrase_with_a_side_has_an_opposite_that_is_read_as_such(relation, phrase):
    prompt = f"A red cat {phrase.title()} a small dog, in the rain"
    if relation == "near":
        with pytest.raises(ValueError, match="has no opposite; choose among above, below"):
            opposed(prompt)
        return
    other = read_spatial(opposed(prompt))
    assert (other.relation, other.nouns) == (AGAINST[relation], ("red cat", "small dog"))
    assert opposed(prompt).startswith("A red cat ") and opposed(prompt).endswith(" a small dog, in the rain")
