"""Methods for the verifications, as files of plugins: one that uses all of the contract rightly, and wrong ones."""

from __future__ import annotations

from pathlib import Path

HEAD = """
import copy, os, signal
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import clf
from clf import losses
from clf.nn import mlp

class Settings(clf.MethodConfig):
    pass

@clf.hookimpl
def clf_methods():
    return [Mine]

class Base(clf.Method[Settings]):
    name = "mine"
    Config = Settings

    def embed(self, batch):
        return self.backbone(torch.cat(batch.views)).chunk(2)
"""

RICH = """
class Mine(Base):
    'Momentum encoder, queue of gathered rows, a critic with an optimizer of its own, noise, chosen batches, a metric.'

    def __init__(self, backbone, config, data):
        super().__init__(backbone, config, data)
        self.projector = mlp(backbone.dim, 32, 16)
        self.teacher = copy.deepcopy(nn.Sequential(backbone, self.projector)).requires_grad_(False)
        self.critic = nn.Linear(16, 1)
        self.register_buffer("queue", F.normalize(torch.randn(64, 16), dim=1))

    def parameter_groups(self):
        return {"main": [*self.backbone.parameters(), *self.projector.parameters()], "critic": self.critic.parameters()}

    def next_batch(self, stream, ctx):
        skipped = stream.next() if ctx.step % 3 == 2 else None
        return stream.next()

    def training_step(self, batch, ctx):
        q = F.normalize(self.projector(self.backbone(batch.views[0])), dim=1)
        with torch.no_grad():
            k = F.normalize(self.teacher(batch.views[1]), dim=1)
        noise = torch.randn(ctx.world_size * len(q), 16, generator=ctx.generator("noise"), dtype=torch.float64)
        noise = noise[ctx.rank * len(q) :][: len(q)].to(q)
        ctx.minimize("critic", F.softplus(self.critic(q.detach() + 0.1 * noise)).mean())
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)) - 0.1 * self.critic(q).mean()
        loss = loss + losses.nt_xent(q, k, 0.5, gather=ctx.gather, rank=ctx.rank)
        ctx.log(similarity=(q * k).sum(1).mean())
        self.queue = torch.cat([ctx.gather(k), self.queue])[:64]
        return clf.StepOutput(loss, {"twice": 2 * loss.detach()})

    def get_extra_state(self):
        return {"made by": "mine"}

    def set_extra_state(self, state):
        assert state == {"made by": "mine"}

    @torch.no_grad()
    def after_step(self, ctx):
        for mine, its in zip(self.teacher.parameters(), nn.Sequential(self.backbone, self.projector).parameters()):
            mine.lerp_(its, 0.01 + 0.1 * ctx.progress)
"""

PREPARED = """
class Mine(Base):
    'Trains a generator first, on images of its own choice, then an encoder that it challenges after each step.'

    def __init__(self, backbone, config, data):
        super().__init__(backbone, config, data)
        self.generator = nn.Linear(4, data.channels)
        self.register_buffer("frozen", torch.zeros(()))

    def parameter_groups(self):
        g = list(self.generator.parameters())
        slow = {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.9)}
        fall = {"name": "linear", "decay": 0.5}
        return {
            "main": self.backbone.parameters(),
            "first": clf.Group(g, {"name": "sgd", "lr": 0.5}, fall, preparation=True),
            "later": clf.Group(g, slow, fall),
        }

    preparation_steps = 7

    def colours(self, ctx, name):
        u = torch.randn(16, 4, generator=ctx.generator(name), dtype=torch.float64).chunk(ctx.world_size)[ctx.rank]
        return self.generator(u.to(self.generator.weight))

    def preparation_step(self, ctx):
        index = torch.randint(self.data.n_images, (16,), generator=ctx.generator("which"))
        real = clf.Augment(clf.Recipe(8))(ctx.images(index), clf.Recipe(8).draw(16, ctx.generator("crop")))
        target = real.to(self.generator.weight).mean((0, 2, 3))
        loss = (self.colours(ctx, "latent") - target).square().mean()
        ctx.minimize("first", loss)
        ctx.log(generator_loss=loss.detach())
        if ctx.step == self.preparation_steps - 1:
            self.frozen.fill_(1.0)

    def training_step(self, batch, ctx):
        assert self.frozen == 1.0
        return losses.nt_xent(*self.embed(batch), 0.5, gather=ctx.gather, rank=ctx.rank)

    def after_step(self, ctx):
        loss = -self.colours(ctx, "later").square().mean()
        ctx.minimize("later", loss)
        ctx.log(challenge=loss.detach())
"""

COUNTS_IN_PYTHON = """
class Mine(Base):
    seen = 0

    def training_step(self, batch, ctx):
        self.seen += 1
        a, b = self.embed(batch)
        return losses.nt_xent(a, b, 0.5 + 0.01 * self.seen, gather=ctx.gather, rank=ctx.rank)
"""

DRAWS_FROM_NUMPY = """
class Mine(Base):
    def training_step(self, batch, ctx):
        a, b = self.embed(batch)
        return losses.nt_xent(a, b, 0.5 + 0.1 * np.random.rand(), gather=ctx.gather, rank=ctx.rank)
"""

DOES_NOT_GATHER = """
class Mine(Base):
    def training_step(self, batch, ctx):
        a, b = self.embed(batch)
        return losses.nt_xent(a, b, 0.5)
"""

QUEUES_ITS_OWN_ROWS = """
class Mine(Base):
    def __init__(self, backbone, config, data):
        super().__init__(backbone, config, data)
        self.register_buffer("queue", torch.zeros(8, backbone.dim))

    def training_step(self, batch, ctx):
        a, b = self.embed(batch)
        self.queue = torch.cat([a.detach(), self.queue])[:8]
        return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank)
"""

HAS_A_BUG = """
class Mine(Base):
    def training_step(self, batch, ctx):
        if ctx.rank == ctx.world_size - 1:
            raise KeyError("a bug of rank 1")
        return losses.nt_xent(*self.embed(batch), 0.5, gather=ctx.gather, rank=ctx.rank)
"""

GETS_A_SIGNAL = """
class Mine(Base):
    'Rank 1, or the only one, gets the signal CLF_TEST_SIGNAL in its fourth step.'

    def training_step(self, batch, ctx):
        if ctx.rank == ctx.world_size - 1 and ctx.step == 3 and "CLF_TEST_SIGNAL" in os.environ:
            os.kill(os.getpid(), int(os.environ["CLF_TEST_SIGNAL"]))
        a, b = self.embed(batch)
        return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank)
"""


def plugin_file(folder: Path, body: str) -> str:
    """The path of a plugin file in the folder."""
    path = folder / "mine.py"
    path.write_text(HEAD + body)
    return str(path)
