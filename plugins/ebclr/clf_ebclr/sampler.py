"""Multi-stage proximal SGLD: chains that climb the log-density of the model (section 3.3, equations 5 and 21).

    x <- x + alpha clamp(grad log q(x), -delta, delta) + sigma eps,   eps ~ N(0, I)

"Proximal" is the elementwise clamp of the gradient (Yang and Ji, JEM++, 2021); "multi-stage" is that sigma falls with
the number of times that a chain has been run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def noise_scale(visits: Tensor, least: float, most: float, stages: int) -> Tensor:
    """sigma = sigma_min + (sigma_max - sigma_min) max(0, 1 - kappa / K) of each chain, (N,) float32.

    Args:
        visits: kappa, how often a chain has been run before, (N,) integers.
        least, most: sigma_min and sigma_max.
        stages: K; from so many visits on the noise is sigma_min.
    """
    return least + (most - least) * (1 - visits / stages).clamp(min=0)


def run_chains(
    log_density: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: Tensor,
    noise: Callable[[], Tensor],
    *,
    steps: int,
    step_size: float,
    clamp: float,
    pieces: int = 1,
) -> tuple[Tensor, Tensor]:
    """T steps of SGLD. Pixels are not kept in a range, as in the official code.

    Args:
        log_density: views (n, C, H, W) -> (n,), each row for itself.
        x: where the chains start, (N, C, H, W).
        sigma: (N,), noise of each chain.
        noise: standard normal numbers (N, C, H, W), new ones at each call.
        steps, step_size, clamp: T, alpha and delta.
        pieces: parts in which the gradient is computed, to save memory.

    Returns:
        Where they end, (N, C, H, W), without a graph; and the share of gradient elements that were clamped, a scalar.
    """
    spread = sigma.to(x).view(-1, 1, 1, 1)
    clamped = x.new_zeros(())
    for _ in range(steps):
        g = torch.cat([_input_gradient(log_density, part) for part in x.tensor_split(pieces)])  # (N, C, H, W)
        clamped += (g.abs() > clamp).to(x.dtype).mean()
        x = x + step_size * g.clamp(-clamp, clamp) + spread * noise()
    return x.detach(), clamped / steps


def _input_gradient(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the sum over rows, so that each row's gradient is its own whatever the number of rows."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = log_density(x).sum()
    (gradient,) = torch.autograd.grad(total, x)
    return gradient


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Networks as functions of their input: no gradients of weights, no dropout, no drop path; undone at the end.

    Without it the gradients of the weights would be computed where a compiled graph has them in one piece with those
    of the input.
    """
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for part in training:
            part.training = False
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def normal(m: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers for M rows of the shape, type and device of ``like``."""
    numbers = torch.randn(m, *like.shape[1:], generator=generator, device=generator.device, dtype=like.dtype)
    return numbers.to(like.device)
