"""Large batches on small memory: a network run on a few rows at a time, with the gradient of the whole batch.

The loss of a contrastive batch needs all its embeddings at once but not all activations behind them. Each chunk is run
forward without keeping activations and, in the backward, once more with them, one chunk after the other (gradient
caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983; the
recomputation is that of torch.utils.checkpoint). It costs one more forward. What still grows with the batch are the
views themselves, the embeddings and the loss's table of similarities.

Exact: a network whose rows do not see each other gives the loss and the gradient of the whole batch, up to the order
of floating-point sums. Not the same: batch norm takes its statistics over a chunk, as it does over one rank's rows,
and moves its running averages once a chunk; dropout draws other numbers than in one piece, the same ones in the
recomputation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_chunks(network: nn.Module, x: Tensor, size: int) -> Tensor:
    """``network(x)`` with the activations of about ``size`` rows alive at a time.

    Chunk i of k takes rows i, i + k, i + 2k, ..., so that a batch of concatenated views is in each chunk what it is
    as a whole, and batch norm cannot tell the views apart.

    Args:
        network: (n, ...) -> (n, D), each row for itself (batch norm aside).
        x: (N, ...).
        size: rows of a chunk, at most.

    Returns:
        (N, D), in the order of ``x``.
    """
    k = -(-len(x) // size)
    if k <= 1:
        whole: Tensor = network(x)
        return whole
    parts = [x[i::k] for i in range(k)]
    if torch.is_grad_enabled():
        done = [checkpoint(network, part, use_reentrant=False, context_fn=lambda: _contexts(network)) for part in parts]
    else:
        done = [network(part) for part in parts]
    order = torch.cat([torch.arange(i, len(x), k, device=x.device) for i in range(k)])
    return torch.cat(done)[order.argsort()]


def _contexts(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward, and of its repetition, which must not move batch norm's running averages a second time."""
    return nullcontext(), _Still(network)


class _Still(AbstractContextManager[None]):
    """Batch norms whose running averages stand still. Entered again for each repetition, as a double backward does.

    The averages are put back instead of held: a changed momentum would make torch.compile compile a second time.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self._averages = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._averages]

    def __exit__(self, *error: object) -> None:
        for buffer, before in zip(self._averages, self._before, strict=True):
            buffer.copy_(before)
