"""Text gain: how much the caption lowers the loss, by noise level and by what is wrong with it.

A model that ignores word order loses nothing when the relation is reversed. This shows learning
long before sampled pictures do, and costs seconds: the same pictures and noise, once with the right
caption and once with each wrong one.
"""
import pandas as pd
import torch
from torch import Tensor, nn

from ..data.captions import captions
from ..data.render import render
from ..data.scenes import FIRST_PHRASE, REVERSE, Scenes, sample_scenes
from ..model.noise import Noise
from ..model.transformer import predict
from ..model.vae import VAE
from ..text.batch import Encoder, TextBatch

TIMES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.2)

# another axis: above <-> left, upper left <-> upper right
_TURNED = torch.tensor([2, 3, 0, 1, 5, 4, 7, 6])


def wrong(scenes: Scenes) -> dict[str, Scenes]:
    """The same scenes as told wrongly: the third shape, colours swapped, the axis of the relation
    turned, the relation reversed."""
    third = torch.stack([scenes.shape[:, 0], 3 - scenes.shape.sum(1)], 1)
    return {"shape": scenes.replace(shape=third),
            "binding": scenes.replace(color=scenes.color.flip(1)),
            "axis": scenes.replace(phrase=FIRST_PHRASE[_TURNED[scenes.relation]]),
            "order": scenes.replace(phrase=FIRST_PHRASE[REVERSE[scenes.relation]])}


def noised_scenes(vae: VAE, count: int, seed: int) -> tuple[Scenes, Tensor, Tensor]:
    """Scenes with both colours told, their latents x_0 [N, 4, 16, 16], and noise for them."""
    scenes = sample_scenes(torch.arange(count), seed, named=torch.ones(count, 2, dtype=torch.bool))
    x0 = vae.encode(render(scenes))
    return scenes, x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))


def expected_latents(model: nn.Module, noise: Noise, x_t: Tensor, t: Tensor, text: TextBatch,
                     batch: int = 128) -> Tensor:
    """x_0 [N, 4, 16, 16] that a model expects under texts; x_t [N, 4, 16, 16], t [N] flow times.
    On the device of x_t, whatever the model's."""
    own = next(model.parameters())
    parts = (z.split(batch) for z in (x_t, t, text.embeddings, text.mask))
    output = torch.cat([predict(model, x.to(own), u.to(own.device) * 1000, e.to(own),
                                m.to(own.device)) for x, u, e, m in zip(*parts, strict=True)])
    return noise.picture(output.float().to(x_t.device), x_t, t)


@torch.no_grad()
def text_gain(model: nn.Module, noise: Noise, encoder: Encoder, vae: VAE, times: tuple = TIMES,
              count: int = 256, seed: int = 90_001) -> pd.DataFrame:
    """Rise of the x_0 error under a wrong caption, 0 where the model makes no use of it: indexed by
    flow time t, columns error (under the right caption), shape, binding, axis, order."""
    scenes, x0, eps = noised_scenes(vae, count, seed)
    device = next(model.parameters()).device
    x0, eps = x0.to(device), eps.to(device)
    told = {"right": scenes, **wrong(scenes)}
    texts = {k: encoder.encode(captions(s)) for k, s in told.items()}

    def error(name: str, t: float) -> Tensor:
        times_ = torch.full((count,), t, device=device)
        alpha, sigma = noise.levels(times_)
        found = expected_latents(model, noise, alpha * x0 + sigma * eps, times_, texts[name])
        return (found - x0).square().mean()

    rows = []
    for t in times:
        base = error("right", t)
        gains = {k: (error(k, t) - base).item() for k in told if k != "right"}
        rows.append({"t": t, "error": base.item(), **gains})
    return pd.DataFrame(rows).set_index("t")
