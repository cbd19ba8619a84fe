"""DiT: the paper's sizes and initialisation in diffusers' own class."""
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from spatial_circuits import dit

MILLIONS = {"B": 121.5, "mini": 17.1, "micro": 4.70, "nano": 2.92}  # parameters with T5-XXL's 4,096 text dimensions


def inputs(batch: int = 2, tokens: int = 6, dim: int = 32):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 4, 16, 16, generator=g), torch.linspace(10, 900, batch),
            torch.randn(batch, tokens, dim, generator=g), torch.ones(batch, tokens, dtype=torch.bool))


@pytest.mark.parametrize("preset", MILLIONS)
def test_sizes_are_the_paper_s(preset):
    with torch.device("meta"):
        model = dit.build(preset, 4096)
    depth, heads, head_dim = dit.PRESETS[preset]
    assert type(model) is PixArtTransformer2DModel and len(model.transformer_blocks) == depth
    assert model.inner_dim == heads * head_dim and model.pos_embed.pos_embed.shape[1] == dit.GRID ** 2 == 64
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[preset], rel=5e-3)


def test_a_fresh_model_is_silent_and_depends_on_its_seed_alone(atom):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = (dit.build(atom, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is untouched
    same = [torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values())]
    assert all(same)
    weight = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    assert dit.predict(one, *inputs()).abs().max() == 0
    assert all(block.attn2.to_out[0].weight.abs().max() == 0 for block in one.transformer_blocks)


def test_every_input_moves_the_output_and_a_masked_token_does_not(lively):
    model = lively(32)
    latents, t, text, mask = inputs()
    mask[:, -2:] = False
    out = dit.predict(model, latents, t, text, mask)
    assert out.shape == latents.shape
    padded = text.clone()
    padded[:, -2:] = 100.0
    assert torch.equal(dit.predict(model, latents, t, padded, mask), out)
    short = dit.predict(model, latents, t, text[:, :-2], mask[:, :-2])
    assert torch.allclose(short, out, atol=1e-5)
    for changed in ((latents + 1, t, text, mask), (latents, t + 50, text, mask), (latents, t, text + 1, mask),
                    (latents, t, text, torch.ones_like(mask))):
        assert (dit.predict(model, *changed) - out).abs().max() > 1e-3


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="'huge' is unknown; choose from tiny, shallow, nano, micro, mini, B"):
        dit.build("huge", 32)


def test_padded_keys_change_no_attention():
    query, key, value = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (64, 13, 13))
    mask = torch.zeros(2, 3, 1, 13).bfloat16()
    mask[0, :, :, 9:] = -10_000
    for given in (mask, None):
        inputs = dit.padded(query, key, value, given)
        assert inputs[1].shape[2] == 16
        bias = given if given is not None else 0
        plain = ((query @ key.transpose(-1, -2)).float() * 8 ** -0.5 + bias).softmax(-1) @ value.float()
        assert torch.allclose(torch.nn.functional.scaled_dot_product_attention(*inputs).float(), plain, atol=0.02)
    single = query.float(), key.float(), value.float(), mask.float()
    assert dit.padded(*single)[1] is single[1]


def test_the_fast_copy_predicts_the_same_and_leaves_the_model_alone(lively, rte):
    model = lively()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = rte.encode(["red square is above blue circle", "blue circle is to the upper left of red square"])
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = torch.tensor([500.0, 500.0]), text.embeddings, text.mask
    exact = dit.predict(model, latents, *arguments)
    quick = dit.fast(model)
    near = dit.predict(quick, latents.bfloat16(), arguments[0], text.embeddings.bfloat16(), text.mask).float()
    assert (near - exact).norm() / exact.norm() < 0.03
    assert next(model.parameters()).dtype == torch.float32 and model.transformer_blocks[0].ff.net[0].approximate == "tanh"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
