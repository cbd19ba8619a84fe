"""Text gain: the gain is what a wrong caption costs, no more and no less."""
import pytest
import torch

from spatial_circuits.data.captions import captions, parse
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import OFFSETS, sample_scenes
from spatial_circuits.model.noise import Noise
from spatial_circuits.training.text_gain import TIMES, text_gain, wrong


class Pooled:
    """Stands for a VAE: 16 x 16 means of the three channels and their mean."""

    def encode(self, images):
        small = torch.nn.functional.avg_pool2d(images.float() / 127.5 - 1, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)


class Reader(torch.nn.Module):
    """Knows the pictures by heart and returns them, `error` off wherever the caption is wrong."""

    def __init__(self, rte, count: int, error: float, seed: int = 90_001):
        super().__init__()
        both = torch.ones(count, 2, dtype=torch.bool)
        scenes = sample_scenes(torch.arange(count), seed, named=both)
        self.pictures, self.error = Pooled().encode(render(scenes)), error
        self.text = rte.encode(captions(scenes)).embeddings
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, latents, encoder_hidden_states, **_):
        length = min(self.text.shape[1], encoder_hidden_states.shape[1])
        difference = self.text[:, :length] - encoder_hidden_states[:, :length]
        off = difference.abs().amax((1, 2)) > 1e-4                                      # [B]
        return (self.pictures + self.error * off[:, None, None, None],)


def test_wrong_captions_are_wrong_in_one_respect():
    scenes = sample_scenes(torch.arange(100), 3, named=torch.ones(100, 2, dtype=torch.bool))
    told = {kind: [parse(c) for c in captions(s)] for kind, s in wrong(scenes).items()}
    for i, right in enumerate(map(parse, captions(scenes))):
        shape, binding, axis, order = (told[k][i] for k in ("shape", "binding", "axis", "order"))
        assert shape.shape[0] == right.shape[0] and shape.shape[1] not in right.shape
        assert (shape.color, shape.phrase) == (right.color, right.phrase)
        assert binding.color == right.color[::-1]
        assert (binding.shape, binding.phrase) == (right.shape, right.phrase)
        assert torch.equal(OFFSETS[order.relation], -OFFSETS[right.relation])
        assert (order.shape, order.color) == (axis.shape, axis.color) == (right.shape, right.color)
        assert OFFSETS[axis.relation] @ OFFSETS[right.relation] == 0


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_gain_is_the_cost_of_a_wrong_caption(rte, error):
    gain = text_gain(Reader(rte, 40, error), Noise("flow", "sample"), rte, Pooled(), count=40)
    assert tuple(gain.index) == TIMES
    assert list(gain.columns) == ["error", "shape", "binding", "axis", "order"]
    assert gain["error"].abs().max() < 1e-9
    assert (gain.drop(columns="error") - error ** 2).abs().max(axis=None) < 1e-5


def test_a_silent_model_gains_nothing_and_errs_as_much_as_the_pictures_vary(rte, atom):
    from spatial_circuits.model.transformer import build_transformer
    model = build_transformer(atom, rte.dim)
    gain = text_gain(model, Noise("flow", "sample"), rte, Pooled(), times=(0.9, 0.5), count=20)
    scenes = sample_scenes(torch.arange(20), 90_001)
    assert (gain.drop(columns="error") == 0).all(axis=None)
    power = Pooled().encode(render(scenes)).square().mean().item()
    assert gain["error"].tolist() == pytest.approx([power] * 2)
