"""DiT: the paper's sizes and initialisation in diffusers' own class."""
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from spatial_circuits.model import transformer as dit
from spatial_circuits.model.precision import resolve_precision

MILLIONS = {"B": 121.5, "mini": 17.1, "micro": 4.70, "nano": 2.92}  # with T5-XXL's 4,096 dimensions


def inputs(batch: int = 2, tokens: int = 6, dim: int = 32):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 4, 16, 16, generator=g), torch.linspace(10, 900, batch),
            torch.randn(batch, tokens, dim, generator=g),
            torch.ones(batch, tokens, dtype=torch.bool))


@pytest.mark.parametrize("preset", MILLIONS)
def test_sizes_are_the_paper_s(preset):
    with torch.device("meta"):
        model = dit.build_transformer(preset, 4096)
    depth, heads, head_dim = dit.SIZES[preset]
    assert type(model) is PixArtTransformer2DModel and len(model.transformer_blocks) == depth
    assert model.inner_dim == heads * head_dim
    assert model.pos_embed.pos_embed.shape[1] == dit.GRID ** 2 == 64
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[preset], rel=5e-3)


def test_a_fresh_model_is_silent_and_depends_on_its_seed_alone(atom):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = (dit.build_transformer(atom, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is untouched
    same = [torch.equal(a, b)
            for a, b in zip(one.state_dict().values(), again.state_dict().values())]
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
    for changed in ((latents + 1, t, text, mask), (latents, t + 50, text, mask),
                    (latents, t, text + 1, mask),
                    (latents, t, text, torch.ones_like(mask))):
        assert (dit.predict(model, *changed) - out).abs().max() > 1e-3


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="'huge' is unknown; choose from tiny, shallow, toy, nano, mic"):
        dit.build_transformer("huge", 32)


def test_padded_keys_change_no_attention():
    query, key, value = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n))
                         .bfloat16() for n in (64, 13, 13))
    mask = torch.zeros(2, 3, 1, 13).bfloat16()
    mask[0, :, :, 9:] = -10_000
    for given in (mask, None):
        inputs = dit.padded(query, key, value, given)
        assert inputs[1].shape[2] == 16
        bias = given if given is not None else 0
        logits = (query @ key.transpose(-1, -2)).float() * 8 ** -0.5 + bias
        plain = logits.softmax(-1) @ value.float()
        fast = torch.nn.functional.scaled_dot_product_attention(*inputs)
        assert torch.allclose(fast.float(), plain, atol=0.02)
    single = query.float(), key.float(), value.float(), mask.float()
    assert dit.padded(*single)[1] is single[1]


def test_the_fast_copy_predicts_the_same_and_leaves_the_model_alone(lively, rte):
    model = lively()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = rte.encode(["red square is above blue circle",
                       "blue circle is to the upper left of red square"])
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = torch.tensor([500.0, 500.0]), text.embeddings, text.mask
    exact = dit.predict(model, latents, *arguments)
    quick = dit.bf16_copy(model)
    near = dit.predict(quick, latents.bfloat16(), arguments[0], text.embeddings.bfloat16(),
                       text.mask).float()
    assert (near - exact).norm() / exact.norm() < 0.03
    assert next(model.parameters()).dtype == torch.float32
    assert model.transformer_blocks[0].ff.net[0].approximate == "tanh"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("device, on_cuda_host", [("cpu", True), (None, True), (None, False)])
def test_auto_precision_is_the_device_s(monkeypatch, device, on_cuda_host):
    """A model on the CPU of a host with a GPU is not sent to bf16, for which it has no units."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_cuda_host)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    wanted = "bf16" if device is None and on_cuda_host else "no"
    assert resolve_precision("auto", device) == wanted
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"
    assert resolve_precision("auto", "meta") == "no" and resolve_precision("fp16", "cpu") == "fp16"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    for capability, found in (("AVX512", "bf16"), ("AVX2", "no")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert resolve_precision("auto", "cpu") == found
    with pytest.raises(ValueError, match="precision 'half' is unknown; choose from auto, no"):
        resolve_precision("half", "cpu")
