"""Our hooks against nnsight on the same stock PixArt model.

Needs the optional extra: pip install -e ".[nnsight]".
"""
import pytest
import torch

from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Ablate
from spatial_circuits.hooks.readers import MeanOutputs, Patterns, Residual
from spatial_circuits.model.sampler import initial_noise

nnsight = pytest.importorskip("nnsight")

LAYER, HEAD, D = 1, 0, 8
PART = slice(HEAD * D, (HEAD + 1) * D)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(rte):
    """A forward's arguments: the two branches of one sample."""
    text = rte.encode(["", "red square is above blue circle"])
    return {"hidden_states": initial_noise([0, 0]), "timestep": torch.full((2,), 900.0),
            "return_dict": False,
            "encoder_hidden_states": text.embeddings, "encoder_attention_mask": text.mask.float(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


@pytest.fixture(scope="module")
def theirs(lively):
    """The same weights under nnsight; it may do to its modules what it likes."""
    return nnsight.NNsight(lively())


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


@torch.no_grad()
def test_readings_are_those_of_nnsight(tiny, theirs, inputs):
    with theirs.trace(**inputs):
        attn = theirs.transformer_blocks[LAYER].attn2
        first = nnsight.save(theirs.transformer_blocks[0].output)
        query, key = nnsight.save(attn.to_q.output), nnsight.save(attn.to_k.output)
        heads = nnsight.save(attn.to_out[0].input)
        second = nnsight.save(theirs.transformer_blocks[LAYER].output)
        out = nnsight.save(theirs.output)
    outputs, patterns, streams = MeanOutputs(), Patterns([(LAYER, HEAD)]), (Residual(1),
                                                                            Residual(2))
    with hooked(tiny.transformer, outputs, patterns, *streams) as session:
        session.at(0)
        ours = tiny.transformer(**inputs)[0]
    assert close(ours, out[0])
    assert close(outputs.mean[0, :, LAYER, HEAD], heads[..., PART])
    assert close(streams[0].values[0, 0], first[1]) and close(streams[1].values[0, 0], second[1])
    pattern = (query[1, :, PART] @ key[1, :, PART].T / D ** 0.5).softmax(-1)
    assert close(patterns.maps[LAYER, HEAD][0, 0], pattern)


@torch.no_grad()
def test_a_zero_ablation_is_that_of_nnsight(tiny, theirs, inputs):
    with theirs.trace(**inputs):
        theirs.transformer_blocks[LAYER].attn2.to_out[0].input[:, :, PART] = 0
        out = nnsight.save(theirs.output)
    plain = tiny.transformer(**inputs)[0]
    with hooked(tiny.transformer, Ablate([(LAYER, HEAD)], branch="both")) as session:
        session.at(0)
        ours = tiny.transformer(**inputs)[0]
    assert close(ours, out[0]) and not torch.allclose(ours, plain, atol=1e-2)
    with hooked(tiny.transformer, Ablate([(LAYER, HEAD)])) as session:
        session.at(0)
        conditional = tiny.transformer(**inputs)[0]
    assert close(conditional[1], out[0][1]) and torch.equal(conditional[0], plain[0])
