"""Noise: how a latent is corrupted, what the model predicts, and which noise levels training visits.

x_t = alpha x_0 + sigma eps. Two paths: `flow` (alpha = 1 - t, sigma = t) and `ddpm` (linear betas, the paper's). Times
run from 0 (picture) to 1 (noise); the model sees 1000 t. Three predictions: `sample` (x_0), `flow_prediction`
(eps - x_0) and `epsilon`. Each pairing is a configuration of diffusers' DPMSolverMultistepScheduler.
"""
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

PREDICTIONS = {"flow": ("sample", "flow_prediction"), "ddpm": ("epsilon", "sample")}
SHARP = 0.1  # x_0 errors are weighted by 1 / max(t, SHARP)^2: the velocity's loss, bounded at low noise


@dataclass(frozen=True)
class Noise:
    """A noise process. `high` is the share of training times drawn uniformly from [`knee`, 1], where positions are
    not yet visible and so the relation must come from the text; the rest is uniform on [0, 1]."""
    path: str = "flow"
    prediction: str = "flow_prediction"
    high: float = 0.5
    knee: float = 0.75
    shift: float = 3.0  # sampling: sigma -> shift sigma / (1 + (shift - 1) sigma), more steps at high noise

    def __post_init__(self):
        if self.path not in PREDICTIONS:
            raise ValueError(f"noise path {self.path!r} is unknown; choose from {', '.join(PREDICTIONS)}")
        if self.prediction not in PREDICTIONS[self.path]:
            raise ValueError(f"prediction {self.prediction!r} does not go with path {self.path!r}; "
                             f"choose from {', '.join(PREDICTIONS[self.path])}")
        for name in ("high", "knee"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"noise.{name} is {getattr(self, name)}; it must lie in 0..1")
        if self.shift <= 0:
            raise ValueError(f"noise.shift is {self.shift}; it must be above 0")

    def times(self, u: Tensor) -> Tensor:
        """Uniforms [B] -> training times [B] in (0, 1). Stratified u give stratified times."""
        low = u / max(1 - self.high, 1e-9)
        t = torch.where(u < 1 - self.high, low, self.knee + (u - 1 + self.high) / max(self.high, 1e-9) * (1 - self.knee))
        return t.clamp(1e-3, 1.0) if self.path == "flow" else (t * 1000).floor().clamp(0, 999) / 1000

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] -> alpha, sigma [B, 1, 1, 1]."""
        t = t[:, None, None, None]
        if self.path == "flow":
            return 1 - t, t
        kept = (1 - torch.linspace(1e-4, 0.02, 1000, device=t.device, dtype=torch.float64)).cumprod(0)
        alpha = kept[(t * 1000).round().long().clamp(0, 999)].sqrt().float()
        return alpha, (1 - alpha ** 2).sqrt()

    def loss(self, output: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Mean squared error per image [B], in units of the prediction (x_0 errors weighted as a velocity)."""
        if self.prediction == "sample":
            weight = t.clamp(min=SHARP) ** -2 if self.path == "flow" else torch.ones_like(t)
            return (output - x0).square().mean((1, 2, 3)) * weight
        target = eps if self.prediction == "epsilon" else eps - x0
        return (output - target).square().mean((1, 2, 3))

    def picture(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that an output stands for, whatever the prediction."""
        alpha, sigma = self.levels(t)
        if self.prediction == "sample":
            return output
        return x_t - sigma * output if self.prediction == "flow_prediction" else (x_t - sigma * output) / alpha

    def scheduler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ 2M for this process; the paper's for path `ddpm`."""
        if self.path == "flow":
            return DPMSolverMultistepScheduler(prediction_type=self.prediction, use_flow_sigmas=True,
                                               flow_shift=self.shift)
        return DPMSolverMultistepScheduler(prediction_type=self.prediction, beta_start=1e-4, beta_end=0.02,
                                           beta_schedule="linear")
