"""Token shares: what part of a relation's effect on the prediction each token carries, at any stage
of training.

`token_exchange` scores pictures, and so needs a model that draws some. Here nothing is drawn: the
noised latents of fresh scenes are predicted under the scene's caption c, under a donor c' of the
same objects (the opposite relation for the side, a turned one for the axis), and under hybrids of
the two, which take the tokens S from the donor:

    share of S = 1 - sum |m(hybrid) - m(c')|^2 / sum |m(c) - m(c')|^2,

m the predicted x_0, sums over scenes. 0: the tokens change nothing; 1: they bring all of it; below
0: they lead elsewhere. As `patching.prediction_effects` has it for heads.
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..data.captions import captions
from ..model.noise import Noise
from ..model.vae import VAE
from ..text.batch import Encoder
from ..text.roles import mask_of_role
from ..training.text_gain import expected_latents, noised_scenes
from .intervals import ratio_interval
from .token_exchange import donors, hybrids

DONOR_OF = {"side": "opposite", "axis": "turned"}
SETS = ("relation", "shape2", "shape1", "filler+end", "relation+shape2")


class TokenShares:
    """The scenes and texts of the question, put to any number of models of one encoder and VAE.

    `count` scenes at flow time `time`, the same for every model. Raises ValueError for a time out
    of (0, 1], a count below 2 and an unknown role.
    """

    def __init__(self, encoder: Encoder, vae: VAE, noise: Noise, sets: Sequence[str] = SETS,
                 time: float = 0.9, count: int = 256, seed: int = 90_001):
        if not 0 < time <= 1 or count < 2:
            raise ValueError(f"time is {time}, count {count}; time must lie in (0, 1], count be "
                             "at least 2")
        for name in sets:
            mask_of_role([], name)      # refuses an unknown one
        scenes, x0, eps = noised_scenes(vae, count, seed)
        self.times = torch.full((count,), time)
        alpha, sigma = noise.levels(self.times)
        self.noised, self.noise, self.sets = alpha * x0 + sigma * eps, noise, sets
        self.dim = encoder.dim
        told = captions(scenes)
        given, rows = donors(told), list(map(str, range(count)))
        self.texts = {part: {name: hybrids(encoder, told, given[kind], [name] * count).encode(rows)
                             for name in ("none", "all", *sets)}
                      for part, kind in DONOR_OF.items()}

    @torch.no_grad()
    def of(self, transformer: nn.Module) -> pd.DataFrame:
        """Rows part (side, axis), tokens, share, low, high (95 % bootstrap over scenes) and moved,
        the mean square of what all tokens together change of x_0."""
        rows = []
        for part, texts in self.texts.items():
            seen = {name: expected_latents(transformer, self.noise, self.noised, self.times, text)
                    for name, text in texts.items()}
            whole = _square(seen["none"] - seen["all"])
            for name in self.sets:
                left = _square(seen[name] - seen["all"])
                most, least = ratio_interval(left, whole)
                share = 1 - left.sum() / whole.sum()
                rows.append((part, name, share, 1 - least, 1 - most, whole.mean()))
        return pd.DataFrame(rows, columns=["part", "tokens", "share", "low", "high", "moved"])


def _square(difference: Tensor) -> np.ndarray:
    """Mean square of each picture [N]."""
    return difference.square().mean((1, 2, 3)).double().numpy()
