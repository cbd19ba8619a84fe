"""Muon: momentum, orthogonalised matrix by matrix before it is applied, in batched products.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). The update rule, coefficients and scaling
are torch.optim.Muon's; that one works matrix by matrix in bf16, which processors without bf16
units emulate at a hundredth of the speed. Here matrices of one shape are stacked, so that a step of
the default model takes 45 batched products, in whatever format the device multiplies fast.
"""
from math import sqrt

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..model.precision import resolve_precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # of the quintic, chosen for its slope at zero
ITERATIONS = 5
EPS = 1e-7


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs and on CPUs with matrix units for it, else float32."""
    fast = device.type == "cuda" or resolve_precision("auto") == "bf16"
    return torch.bfloat16 if fast else torch.float32


def orthogonalised(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [N, m, n] -> [N, m, n] with singular values near 1, by Newton-Schulz.

    The shorter side is turned to the left, so that the Gram matrices are small.
    """
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).to(dtype).contiguous()
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPS)[:, None, None]      # spectral norm at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT                                                 # [N, m, m]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(stack.dtype)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)); decoupled decay.

    For matrices only. Its state is one `momentum_buffer` a parameter. `dtype` is that of
    Newton-Schulz, by default the fast one of the device. Raises ValueError for other parameters.
    """

    def __init__(self, params, lr: float = 0.02, weight_decay: float = 0.01, momentum: float = 0.95,
                 dtype: torch.dtype | None = None):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices; a parameter has shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step for every matrix that has a gradient. `closure` is not supported."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for shape in dict.fromkeys(p.shape for p in params):
                rows = [i for i, p in enumerate(params) if p.shape == shape]
                dtype = self.dtype or fast_dtype(params[rows[0]].device)
                stack = orthogonalised(torch.stack([updates[i] for i in rows]), dtype)
                rate = group["lr"] * sqrt(max(1, shape[0] / shape[1]))
                torch._foreach_add_([params[i] for i in rows], list(stack), alpha=-rate)
