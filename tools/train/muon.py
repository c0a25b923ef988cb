"""Muon: momentum made orthogonal, for the matrices of hidden layers.

K. Jordan et al. 2024 (the Newton-Schulz iteration and its coefficients); the scale 0.2 * sqrt(larger side), with which
it takes AdamW's learning rate and weight decay, is that of arXiv 2502.16982.
"""
import math
from collections import defaultdict

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns] -> the nearest matrices with singular values near 1, in bf16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """lr may be a tensor, so that a captured step can be told another rate."""

    def __init__(self, parameters, lr: float | torch.Tensor, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            of_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, parameters in of_shape.items():
                self._step(group, shape, parameters)

    def _step(self, group, shape, parameters):
        """Matrices of one shape go through the iteration together."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        looking_ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonalise(looking_ahead).float() * (0.2 * math.sqrt(max(shape)) * group["lr"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, list(updates.unbind()))
