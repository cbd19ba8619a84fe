"""Weights: what is read off them is what the modules do."""
import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from spatial_circuits.analyses.weight_maps import (
    DIRECTIONS,
    cross_weights,
    head_writes,
    logit_shift,
    ov,
    positions,
    project_captions,
    qk_composition,
    qk_maps,
    queries,
    ramps,
    screen_words,
    shape_keys,
    snapshots,
    spectra,
    templates,
    token_grid,
    token_words,
    words,
)
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.text.batch import TextBatch

PROMPTS = ["red square is above blue circle", "triangle is to the left of red square"]
SIDES = torch.tensor([(0, -1), (0, 1), (-1, 0), (1, 0)])
D = 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(lively):
    """An untrained model whose cross-attention has biases too."""
    model, generator = lively(), torch.Generator().manual_seed(1)
    for block in model.transformer_blocks:
        for name in ("to_q", "to_k", "to_v"):
            torch.nn.init.normal_(getattr(block.attn2, name).bias, generator=generator)
    return model


@pytest.fixture(scope="module")
def vectors(model):
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(2))


def projected(model, layer, name, x):
    """Heads of a projection as the module makes them: [H, n, d]."""
    return getattr(model.transformer_blocks[layer].attn2, name)(x).unflatten(-1, (2, D)).movedim(-2, 0)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_positions_and_captions_are_the_model_s(model, rte):
    text = rte.encode(PROMPTS).embeddings
    assert torch.equal(project_captions(model, text), model.caption_projection(text))
    patch = model.pos_embed(torch.zeros(1, 4, 16, 16)) - model.pos_embed.proj.bias
    assert torch.allclose(positions(model), patch[0], atol=1e-6)
    branch = copy.deepcopy(model).bfloat16()
    assert project_captions(branch, text).dtype == torch.float32 and torch.allclose(project_captions(branch, text), project_captions(model, text), atol=0.1)


@pytest.mark.parametrize("stream", [None, "noise"])
def test_maps_are_the_logits_that_the_modules_give(model, vectors, stream):
    stream = stream and noise(64, 16)
    x = positions(model) if stream is None else stream
    found, q = qk_maps(model, vectors, stream), queries(model, stream)
    assert found.shape == (2, 2, 5, 8, 8)
    for layer in range(2):
        by_module = projected(model, layer, "to_q", x)
        keys = projected(model, layer, "to_k", vectors)
        wanted = keys @ by_module.transpose(1, 2) * model.transformer_blocks[layer].attn2.scale
        assert torch.allclose(q[layer], by_module, atol=1e-5)
        assert torch.allclose(found[layer], wanted.unflatten(-1, (8, 8)), atol=1e-4)
    assert found.std() > 0.1


def test_a_write_is_what_the_output_projection_makes_of_one_head_s_value(model, vectors):
    found = ov(model, vectors)
    for layer in range(2):
        out, value = model.transformer_blocks[layer].attn2.to_out[0], projected(model, layer, "to_v", vectors)
        for head in range(2):
            alone = torch.zeros(5, 16)
            alone[:, head * D:(head + 1) * D] = value[head]
            assert torch.allclose(found[layer, head], out(alone) - out(torch.zeros(16)), atol=1e-5)
    assert found.std() > 0.1


def test_composition_is_how_far_a_write_moves_the_logits(model, vectors):
    writes, stream = noise(3, 16), noise(64, 16)
    found = qk_composition(model, writes, vectors)
    assert found.shape == (2, 2, 3, 5)
    for r in range(3):
        moved = (qk_maps(model, vectors, stream + writes[r]) - qk_maps(model, vectors, stream)).flatten(3)  # [L, H, K, N]
        wanted = moved - moved.mean(2, keepdim=True)
        assert torch.allclose(found[:, :, r, :, None].expand(-1, -1, -1, 64), wanted, atol=1e-4)


def test_what_a_head_writes_is_its_values_by_its_pattern(model, rte):
    """At every place, from the module's own values."""
    text = model.caption_projection(rte.encode(PROMPTS).embeddings)
    pattern = torch.rand(2, 64, 9, generator=torch.Generator().manual_seed(4)).softmax(-1)
    attn = model.transformer_blocks[1].attn2
    alone = torch.zeros(2, 64, 16)
    alone[..., D:] = pattern @ attn.to_v(text)[..., D:]
    found = head_writes(model, text, pattern, (1, 1))
    assert torch.allclose(found, attn.to_out[0](alone) - attn.to_out[0].bias, atol=1e-5) and found.std() > 0.05


def test_a_reading_is_by_how_far_a_write_sets_two_logits_apart(model, rte):
    keys = shape_keys(model, rte, PROMPTS)
    vectors = model.caption_projection(rte.encode(PROMPTS).embeddings)
    assert torch.allclose(keys, torch.stack([vectors[0, [1, 5]], vectors[1, [0, 7]]]), atol=1e-6)
    writes, stream = noise(2, 64, 16), noise(64, 16)
    found = logit_shift(model, writes, keys, (1, 0))
    for b in range(2):
        moved = (qk_maps(model, keys[b], stream + writes[b]) - qk_maps(model, keys[b], stream))[1, 0].flatten(1)  # [2, N]
        assert torch.allclose(found[b], moved[0] - moved[1], atol=1e-4)


def test_spectra_are_those_of_the_whole_matrices(model):
    found = spectra(model)
    for layer, block in enumerate(model.transformer_blocks):
        for head in range(2):
            part, attn = slice(head * D, (head + 1) * D), block.attn2
            qk = attn.to_q.weight[part].T @ attn.to_k.weight[part]
            moved = attn.to_out[0].weight[:, part] @ attn.to_v.weight[part]
            for name, matrix in (("QK", qk), ("OV", moved)):
                assert torch.allclose(found[name][layer, head], torch.linalg.svdvals(matrix)[:D], atol=1e-4)


def test_a_model_without_cross_attention_or_biases(lively, vectors):
    model = lively()
    layer = model.transformer_blocks[0].attn2.to_k
    before, layer.bias = qk_maps(model, vectors), None  # zero in this model
    assert torch.equal(qk_maps(model, vectors), before)
    model.transformer_blocks[1].attn2 = None
    with pytest.raises(ValueError, match="no cross-attention in some block"):
        cross_weights(model)


# ---- ramps

@given(st.floats(0, 6.28), st.sampled_from([4, 8]))
def test_templates_have_mean_0_and_norm_1_and_rise_to_their_side(angle, side):
    direction = torch.tensor([[torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))]])
    ramp = templates(direction, (side, side))[0]
    assert abs(ramp.mean()) < 1e-6 and abs(ramp.norm() - 1) < 1e-5
    x, y = (torch.linspace(-1, 1, side).expand(side, side), torch.linspace(-1, 1, side)[:, None].expand(side, side))
    rise = torch.stack([(ramp * x).sum(), (ramp * y).sum()])
    assert torch.allclose(rise / rise.norm(), direction[0], atol=1e-5)


def test_templates_by_hand():
    up, left = templates(torch.tensor([(0, -1), (-1, 0)]), (8, 8))
    assert up[0].min() > up[-1].max() and torch.allclose(up.std(1), torch.zeros(8), atol=1e-7)
    assert torch.equal(left, up.T)


def test_planted_ramps_are_found_with_their_sign_and_size():
    sizes = torch.tensor([3.0, 3.0, 3.0, 3.0])
    maps = templates(SIDES, (8, 8)) * sizes[:, None, None]
    for center in (True, False):
        found = ramps(maps, SIDES, center)
        assert torch.allclose(found["cosine"], torch.ones(4), atol=1e-6)
        assert torch.allclose(found["projection"], sizes, atol=1e-5) and torch.allclose(found["energy"], sizes, atol=1e-5)
    turned = ramps(maps[[1, 0, 3, 2]], SIDES)["cosine"]
    assert torch.allclose(turned, -torch.ones(4), atol=1e-6)
    across = ramps(maps[[2, 3, 0, 1]], SIDES)["cosine"]
    assert torch.allclose(across, torch.zeros(4), atol=1e-6)
    assert torch.equal(ramps(torch.zeros(4, 8, 8), SIDES)["cosine"], torch.zeros(4))


def test_what_all_directions_share_is_no_ramp():
    maps, common = noise(2, 3, 4, 8, 8), 5 * noise(8, 8)                             # any leading dimensions
    for key in ("cosine", "projection", "energy"):
        plain, biased = ramps(maps, SIDES)[key], ramps(maps + common, SIDES)[key]
        assert plain.shape == (2, 3, 4) and torch.allclose(plain, biased, atol=1e-4)
        assert not torch.allclose(ramps(maps, SIDES, False)[key], ramps(maps + common, SIDES, False)[key], atol=0.05)
    twice = SIDES[[0, 0, 0, 1, 2, 3]]                                                # three words for up: it still weighs once
    found = ramps(templates(twice, (8, 8)) + common, twice)["cosine"]
    assert torch.allclose(found, torch.ones(6), atol=1e-5)


# ---- words of a model

def test_a_word_s_vector_is_the_mean_over_its_places(model, rte):
    found, text = words(model, rte, PROMPTS), rte.encode(PROMPTS)
    told = {w for p in PROMPTS for w in p.split()}
    assert set(found) == told | {"</s>"}                                             # and no pad
    vectors = model.caption_projection(text.embeddings)
    assert torch.allclose(found["square"], (vectors[0, 1] + vectors[1, 7]) / 2, atol=1e-6)
    assert torch.allclose(found["triangle"], vectors[1, 0], atol=1e-6)
    assert not torch.allclose(vectors[0, 1], vectors[1, 7], atol=1e-3)


def test_the_screen_is_a_table_of_ramps(model, rte):
    prompts = prompt_set(22)
    frame = screen_words(model, rte, prompts)
    assert list(frame)[:4] == ["name", "layer", "head", "word"] and len(frame) == 2 * 2 * len(set(frame["word"]))
    found = words(model, rte, prompts)
    said = [w for w in DIRECTIONS if w in found]
    assert set(frame["word"]) == set(said) == set(DIRECTIONS)
    wanted = ramps(qk_maps(model, torch.stack([found[w] for w in said])), torch.tensor([DIRECTIONS[w] for w in said]))
    for row in frame.sample(12, random_state=0).itertuples():
        assert row.name == f"L{row.layer}H{row.head}"
        for key in ("cosine", "projection", "energy"):
            assert getattr(row, key) == pytest.approx(wanted[key][row.layer, row.head, said.index(row.word)].item(), abs=1e-5)
    assert (frame.groupby("name")["control"].nunique() == 1).all() and (frame["control"] > 0).all()
    with pytest.raises(ValueError, match="hold 1 direction words; give prompts with at least two of above"):
        screen_words(model, rte, PROMPTS[:1])


def test_the_control_is_what_other_words_reach_on_their_best_ramp(model, rte):
    prompts = prompt_set(22)
    found = words(model, rte, prompts)
    maps = qk_maps(model, torch.stack([v for w, v in found.items() if w not in DIRECTIONS]))
    maps = (maps - maps.mean(2, keepdim=True)).flatten(3)                            # a template's mean is 0 anyway
    best = (maps @ templates(SIDES, (8, 8)).flatten(1).T).amax(-1).mean(-1)                  # [L, H]
    control = screen_words(model, rte, prompts).groupby(["layer", "head"])["control"].first()
    assert all(control[i, j] == pytest.approx(best[i, j].item(), abs=1e-4) for i in range(2) for j in range(2))


def test_a_screen_finds_a_planted_ramp_head(lively, rte):
    """L1H0 made to read the place's height in its queries, and "above" against "below" in its keys."""
    model, prompts = lively(), prompt_set(22)
    vectors, heights = words(model, rte, prompts), positions(model)
    height = torch.linspace(1, -1, 8).repeat_interleave(8)
    attn = model.transformer_blocks[1].attn2
    axis = (torch.linalg.pinv(heights.double(), rtol=1e-4) @ height.double()).float()  # what in P_i is height
    apart = vectors["above"] - vectors["below"]
    attn.to_q.weight[:D], attn.to_k.weight[:D] = 0, 0
    attn.to_q.weight[0], attn.to_k.weight[0] = 10 * axis, 10 * apart / apart.norm()
    frame = screen_words(model, rte, prompts).set_index(["name", "word"])
    assert min(frame.loc[("L1H0", w), "cosine"] for w in ("above", "below")) > 0.9
    assert frame.loc[("L1H0", "above"), "projection"] > 2 * frame.loc[("L0H0", "above"), "projection"]


# ---- snapshots

def test_snapshots_hold_what_was_saved_and_the_rest_of_the_model(lively, tmp_path):
    model, key = lively(), "transformer_blocks.0.attn2.to_q.weight"
    (tmp_path / "snapshots").mkdir()
    for step in (20, 100):
        save_file({key: torch.full((16, 16), step / 8, dtype=torch.float16)}, tmp_path / "snapshots" / f"{step:08d}.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = snapshots(model, tmp_path)
    assert list(found) == [20, 100]
    for step, snapshot in found.items():
        state = snapshot.state_dict()
        assert state[key].dtype == torch.float32 and (state[key] == step / 8).all()
        assert all(torch.equal(v, before[k]) for k, v in state.items() if k != key)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_without_snapshots_says_so(lively, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{folder} holds no snapshots of its training; train with --evaluate-every"):
            snapshots(lively(), folder)


# ---- other tokenizers and sizes

@pytest.mark.parametrize("tokens", [
    ["[CLS]", "dia", "##gonal", "##ly", "up", "square", ".", "[SEP]"],                 # WordPiece
    ["▁Dia", "gon", "ally", "▁up", "▁", "square", ".", "</s>"],                        # SentencePiece
    ["<|startoftext|>", "diag", "onally</w>", "up</w>", "square</w>", ".</w>", "<|endoftext|>"],
    ["diag", "onally", "Ġup", "Ġsquare", "."]])                                        # byte-level BPE
def test_words_are_found_however_a_tokenizer_splits_them(tokens):
    found = dict(token_words("Diagonally up square.", tokens))
    for word in ("diagonally", "up", "square"):
        pieces = "".join(tokens[i] for i in found[word])
        assert re.sub("##|▁|Ġ|</w>", "", pieces).lower() == word
    assert sorted(i for at in found.values() for i in at) == list(range(len(tokens)))


def test_a_word_said_twice_occurs_twice():
    assert token_words("the the up", ["the", "the", "up"]) == [("the", [0]), ("the", [1]), ("up", [2])]


class Splitting:
    """The default encoder, but for its tokens: every word as SentencePiece marks it, in two pieces."""

    def __init__(self, rte):
        self.rte, self.dim = rte, rte.dim

    def encode(self, prompts):
        text = self.rte.encode(prompts)
        twice = lambda row, *made: [x for item in row for x in (make(item) for make in made)]  # noqa: E731
        tokens = [twice(row, lambda t: "▁" + t[:2], lambda t: t[2:]) for row in text.tokens]
        roles = [twice(row, str, str) for row in text.roles]
        return TextBatch(text.embeddings.repeat_interleave(2, 1), text.mask.repeat_interleave(2, 1), tokens, roles)


def test_a_screen_finds_words_of_several_tokens(model, rte):
    prompts = prompt_set(22)
    whole, split = screen_words(model, rte, prompts), screen_words(model, Splitting(rte), prompts)
    columns = ["cosine", "projection", "energy"]
    assert list(whole["word"]) == list(split["word"])
    assert (whole[columns] - split[columns]).abs().max(axis=None) < 1e-5


@pytest.mark.parametrize("prompts", [[], ["above up", "square is higher than red circle"]])
def test_a_screen_needs_words_for_two_sides_and_names_the_tokenizer(model, rte, prompts):
    with pytest.raises(ValueError, match="for different sides .the tokenizer of RandomTokenEncoder reads: (above|nothing)"):
        screen_words(model, rte, prompts)


def test_positions_at_another_size_are_those_that_the_model_adds(model, vectors):
    patch = model.pos_embed(torch.zeros(1, 4, 16, 24)) - model.pos_embed.proj.bias     # 8 x 12 image tokens
    assert torch.allclose(positions(model, (8, 12)), patch[0], atol=1e-6) and token_grid(model) == (8, 8)
    assert qk_maps(model, vectors, size=(8, 12)).shape == (2, 2, 5, 8, 12)
    with pytest.raises(ValueError, match="a stream of 96 image tokens is no grid of 8 x 8"):
        qk_maps(model, vectors, positions(model, (8, 12)))
    found = ramps(templates(SIDES, (8, 12)), SIDES)["cosine"]
    assert torch.allclose(found, torch.ones(4), atol=1e-5)
