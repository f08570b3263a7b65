"""The other side: images that look too much like another image of the batch leave it for images that wait.

Those that wait stand in a queue of positions in the training set, the same on every rank; their pixels are read again
when their turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clf_batch_curation.curate import Attempt, Curation
from clf_batch_curation.ranks import conflicts, cross_similarity, evictions


@dataclass(frozen=True)
class Exchanged:
    """What an exchange did."""

    queue: list[int]
    """Positions of those that wait now, the next one first; as many as before."""
    evicted: int
    swapped: int
    popped: int


def exchange(
    curation: Curation, queue: list[int], conflict: Tensor, *, alike: Tensor, limit: Tensor, most: int
) -> Exchanged:
    """Frees the places of the images with most conflicts and fills them from the queue.

    As many images are popped as places are free; each gets a fresh pair. One that ranks above ``limit``, is in
    conflict with an image that stays, or is in the batch already, goes to the back of the queue, and the next ones are
    tried; after two pops for each freed place the old image keeps what is still free. Images that left go to the back
    after those.

    Args:
        queue: positions, the next one first.
        conflict: (M, M) bool, of the batch as it stands.
        alike: similarity S_ij above which two images are in conflict (tau_n).
        limit: rank above which a new pair is not taken (rho_t).
        most: places to free.
    """
    chosen = evictions(conflict, most)
    free, swapped, pops, waves = chosen, 0, 0, 0
    index: list[int] = curation.ctx.gather(curation.batch.index).tolist()
    present = set(index)  # with those about to leave, which may yet stay
    failed: list[int] = []
    left: list[int] = []
    kept = torch.ones(len(index), dtype=torch.bool, device=curation.a.device)
    kept[chosen] = False
    while free and pops < 2 * len(chosen):
        wave = min(len(free), 2 * len(chosen) - pops, len(queue))
        if not wave:
            break
        popped, queue = queue[:wave], queue[wave:]
        pops, waves = pops + wave, waves + 1
        device = curation.a.device
        attempt = curation.attempt(
            torch.tensor(free[:wave], device=device),
            f"curation, exchange {waves}",
            torch.tensor(popped, device=device),
            among=kept,
        )
        taken = _acceptable(curation, attempt, popped, present, kept, alike, limit)
        curation.install(attempt, torch.tensor(taken, device=device))
        swapped += sum(taken)
        left += [index[place] for place, yes in zip(free, taken, strict=False) if yes]
        failed += [position for position, yes in zip(popped, taken, strict=True) if not yes]
        kept[[place for place, yes in zip(free, taken, strict=False) if yes]] = True
        free = [place for place, yes in zip(free, taken, strict=False) if not yes] + free[wave:]
    return Exchanged(queue + failed + left, len(chosen), swapped, pops)


def _acceptable(
    curation: Curation,
    attempt: Attempt,
    popped: list[int],
    present: set[int],
    kept: Tensor,
    alike: Tensor,
    limit: Tensor,
) -> list[bool]:
    """Whether each newcomer may stay, the first ones first; ``present`` takes in those that may."""
    s = cross_similarity(attempt.a, attempt.b, curation.a, curation.b)  # (n, M)
    good = ((attempt.ranks <= limit) & ~((s > alike) & kept).any(1)).tolist()
    clash = conflicts(attempt.a, attempt.b, alike).tolist()  # (n, n)
    taken: list[bool] = []
    for i, position in enumerate(popped):
        beside = any(clash[i][j] for j in range(i) if taken[j])
        taken.append(good[i] and not beside and position not in present)
        if taken[i]:
            present.add(position)
    return taken
