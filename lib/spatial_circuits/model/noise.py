"""Noise: how a latent is corrupted, what the model predicts, and which levels training visits.

x_t = alpha x_0 + sigma eps. Two paths: `flow` (alpha = 1 - t, sigma = t; Lipman et al., 2023) and
`ddpm` (linear betas, the paper's; Ho et al., 2020). Times run from 0 (picture) to 1 (noise); the
model sees 1000 t. Three predictions: `sample` (x_0), `flow_prediction` (eps - x_0) and `epsilon`.
Each pairing is a configuration of diffusers' DPMSolverMultistepScheduler.
"""
from dataclasses import dataclass
from math import inf

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

PREDICTIONS = {"flow": ("sample", "flow_prediction"), "ddpm": ("epsilon", "sample")}
SHARP = 0.1  # x_0 errors are weighted by 1 / max(t, SHARP)^2: a velocity's loss, bounded


@dataclass(frozen=True)
class Noise:
    """A noise process.

    Training times: a share `top` is uniform on [`peak`, 1], where the picture is gone and the
    caption all there is; a share `high` on [`knee`, 1], where positions are not yet visible and so
    the relation must come from the text; the rest on [0, 1]. Raises ValueError for an unknown path
    or prediction, and for values out of range.
    """
    path: str = "flow"
    prediction: str = "flow_prediction"
    top: float = 0.0
    peak: float = 0.97
    high: float = 0.5
    knee: float = 0.75
    shift: float = 3.0  # sampling: sigma -> shift sigma / (1 + (shift - 1) sigma): more high noise

    def __post_init__(self):
        if self.path not in PREDICTIONS:
            raise ValueError(f"noise path {self.path!r} is unknown; "
                             f"choose from {', '.join(PREDICTIONS)}")
        if self.prediction not in PREDICTIONS[self.path]:
            raise ValueError(f"prediction {self.prediction!r} does not go with path {self.path!r}; "
                             f"choose from {', '.join(PREDICTIONS[self.path])}")
        for name in ("top", "peak", "high", "knee"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"noise.{name} is {getattr(self, name)}; it must lie in 0..1")
        if self.top + self.high > 1:
            raise ValueError(f"noise.top and noise.high are {self.top} and {self.high}; "
                             "their sum must be at most 1")
        if not 0 < self.shift < inf:
            raise ValueError(f"noise.shift is {self.shift}; it must be above 0 and finite")

    def times(self, u: Tensor, widened: float = 1.0) -> Tensor:
        """Uniforms [B] -> training times [B] in (0, 1). Stratified u give stratified times.

        At `widened` 0 all lie in [`peak`, 1]; from there to 1 the shares grow to their own, that of
        [`knee`, 1] ahead of that of [0, 1].
        """
        rest = (1 - self.top - self.high) * widened ** 2
        top = 1 - (1 - self.top) * widened
        parts = ((0.0, rest), (self.knee, 1 - rest - top), (self.peak, top))
        t, start = u, 0.0
        for low, share in parts:
            if share > 0:
                inside = low + (u - start) / share * (1 - low)
                t = torch.where(u >= start, inside, t)
            start += share
        if self.path == "flow":
            return t.clamp(1e-3, 1.0)
        return (t * 1000).floor().clamp(0, 999) / 1000

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] -> alpha, sigma [B, 1, 1, 1]."""
        t = t[:, None, None, None]
        if self.path == "flow":
            return 1 - t, t
        betas = torch.linspace(1e-4, 0.02, 1000, device=t.device, dtype=torch.float64)
        kept = (1 - betas).cumprod(0)
        alpha = kept[(t * 1000).round().long().clamp(0, 999)].sqrt().float()
        return alpha, (1 - alpha ** 2).sqrt()

    def loss(self, output: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Mean squared error per image [B], in units of the prediction; x_0's as a velocity's.

        output, x0, eps [B, 4, 16, 16]; t [B].
        """
        if self.prediction == "sample":
            weight = t.clamp(min=SHARP) ** -2 if self.path == "flow" else torch.ones_like(t)
            return (output - x0).square().mean((1, 2, 3)) * weight
        target = eps if self.prediction == "epsilon" else eps - x0
        return (output - target).square().mean((1, 2, 3))

    def picture(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 [B, 4, 16, 16] that an output stands for, whatever the prediction; t [B]."""
        alpha, sigma = self.levels(t)
        if self.prediction == "sample":
            return output
        if self.prediction == "flow_prediction":
            return x_t - sigma * output
        return (x_t - sigma * output) / alpha

    def scheduler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ 2M (Lu et al., 2022) for this process; the paper's for path `ddpm`."""
        if self.path == "flow":
            return DPMSolverMultistepScheduler(prediction_type=self.prediction,
                                               use_flow_sigmas=True, flow_shift=self.shift)
        return DPMSolverMultistepScheduler(prediction_type=self.prediction, beta_start=1e-4,
                                           beta_end=0.02, beta_schedule="linear")
