"""Where chains start anew: at views of training images, the distribution p(v) of the data itself (section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

import clf
from clf_ebclr.buffer import INITIAL_VISITS, ReplayBuffer
from clf_ebclr.config import EBCLRConfig
from clf_ebclr.sampler import normal


@dataclass(frozen=True)
class Proposal:
    """Views of training images drawn at random, with the noise that all views have, in [-1, 1] roughly."""

    settings: EBCLRConfig
    n_images: int
    batch: clf.Batch
    ctx: clf.Context

    @torch.no_grad()
    def fill(self, buffer: ReplayBuffer) -> None:
        """The first content of the buffer, as of chains that are past all stages of the noise. Alike on all ranks.

        Raises:
            clf.ConfigError: the buffer does not fit into memory.
        """
        buffer.make_room()
        index = torch.randint(self.n_images, (buffer.length,), generator=self.ctx.generator("buffer images"))  # (L,)
        noise = self.ctx.device_generator("buffer noise")
        for slots in torch.split(torch.arange(buffer.length), self.settings.buffer_chunk):
            places = slots - slots[0]
            view = self._view(index[slots], places, self.ctx.generator(f"buffer views {int(slots[0])}"))
            view = view + self.settings.view_noise * normal(len(slots), view, noise)
            buffer.write(slots, 2 * view - 1, torch.full_like(slots, INITIAL_VISITS))

    def restart(self, start: Tensor, fresh: Tensor, mine: slice) -> Tensor:
        """The starts (N, C, S, S) of this rank's rows ``mine``, exchanged where ``fresh`` (M,) holds."""
        m = len(fresh)
        index = torch.randint(self.n_images, (m,), generator=self.ctx.generator("restart images"))  # (M,)
        rows = fresh[mine].nonzero()[:, 0]  # (R,) of this rank
        if not len(rows):
            return start
        places = rows + mine.start  # among the M
        everywhere = places.to(start.device)
        view = self._view(index[places], places, self.ctx.generator("restart views"))  # (R, C, S, S)
        noise = normal(m, start, self.ctx.device_generator("restart noise"))[everywhere]
        view = self._mixed(view + self.settings.view_noise * noise, everywhere, m)
        return start.index_copy(0, rows.to(start.device), (2 * view - 1).to(start))

    def _mixed(self, view: Tensor, rows: Tensor, m: int) -> Tensor:
        """c view + (1 - c) noise, uniform in [0, 1], of rows (R,) of the M; the official configurations have c = 1."""
        mix = self.settings.proposal_mix
        if mix == 1:
            return view
        generator = self.ctx.device_generator("restart mix")
        uniform = torch.rand(m, *view.shape[1:], generator=generator, device=generator.device, dtype=view.dtype)
        return mix * view + (1 - mix) * uniform.to(view.device)[rows]

    def _view(self, index: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        """A view (n, C, S, S) in [0, 1] of the images at ``index``; in chunked mode all share one draw."""
        places = torch.zeros_like(places) if self.settings.augmentation == "chunked" else places
        return self.batch.augment(self.ctx.images(index), generator, places)[0]
