"""Methods for the checks that train: bodies that follow :data:`plugins_to_verify.HEAD`, most of them wrong in one way.

``WRONG`` has them by the one check that must fail.
"""

from __future__ import annotations

from collections.abc import Mapping

PLAIN = """
class Mine(Base):
    def __init__(self, backbone, config, data):
        super().__init__(backbone, config, data)
        self.projector = mlp(backbone.dim, 32, 16)
        {made}

    def embed(self, batch):
        return self.projector(self.backbone(torch.cat(batch.views))).chunk(2)

    def training_step(self, batch, ctx):
        a, b = self.embed(batch)
        {done}
        return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank)

    {more}
"""


def plain(made: str = "", done: str = "", more: str = "") -> str:
    """SimCLR with further lines in __init__, in training_step before the loss, and in the class."""
    return PLAIN.format(
        made=made.replace("\n", "\n        "), done=done.replace("\n", "\n        "), more=more.replace("\n", "\n    ")
    )


GOOD = plain()
FLOAT = plain(done="return losses.nt_xent(a.detach(), b.detach(), 0.5).item()")
DETACHED = plain(done="a, b = a.detach(), b.detach()")
INFINITE = plain(done="return losses.nt_xent(a, b, 0.5) + ((a - a).mean().log() if ctx.step > 1 else 0)")
IN_PLACE = plain(done="a = a.exp()\na *= 2")
LOGS_NAN = plain(done="ctx.log(share=float('nan'))")
FOURS = plain(done="a.view(-1, 4, 16)")
NEEDS_TEN = plain(
    made="if data.batch_size < 10: raise clf.ConfigError('train.batch_size is too small: use 10 or more')"
)
COLOURS = plain(
    made="self.register_buffer('tint', torch.ones(1, 3, 1, 1))",
    more="def embed(self, batch):\n    x = torch.cat(batch.views) * self.tint\n"
    "    return self.projector(self.backbone(x)).chunk(2)",
)
SINGLE = plain(done="a, b = a.float(), b.float()")
STORES_HALF = plain(
    made="self.register_buffer('queue', torch.zeros(4, 16))",
    done="self.queue.index_copy_(0, torch.arange(2), ctx.gather(a.detach())[:2])",
)
BECOMES_HALF = plain(
    made="self.register_buffer('last', torch.zeros(16))", done="self.last = ctx.gather(a.detach()).mean(0).to(a)"
)
UNUSED_HEAD = plain(made="self.predictor = nn.Linear(16, 16)")
TRAINED_TEACHER = plain(
    made="self.teacher = copy.deepcopy(self.projector)",
    more="def after_step(self, ctx):\n    with torch.no_grad():\n"
    "        for its, mine in zip(self.teacher.parameters(), self.projector.parameters()): its.lerp_(mine, 0.1)",
)
LEFT_OUT = plain(more="def parameter_groups(self):\n    return {'main': self.backbone.parameters()}")
ONE_VIEW_TWICE = plain(done="b = a.flip(1)")
OWN_LABELS = plain(done="labels = ctx._trainer.data.train.labels[batch.index]\na = a + labels[:, None].to(a) / 10")
HOOKED = plain(
    made="self.seen = []\nbackbone.model.register_forward_hook(lambda m, x, y: self.seen.append(y))",
    done="pulled = ctx.gather(self.seen[-1]).square().mean()\nself.seen.clear()\n"
    "return losses.nt_xent(a, b, 0.5, gather=ctx.gather, rank=ctx.rank) + pulled",
)
INSIDE = plain(
    more="def embed(self, batch):\n    return self.projector(self.backbone.model(torch.cat(batch.views))).chunk(2)"
)
RETUNES = plain(
    more="def next_batch(self, stream, ctx):\n"
    "    for part in self.backbone.modules():\n"
    "        if isinstance(part, nn.BatchNorm2d): part.momentum = 0.1 + 0.01 * ctx.step\n"
    "    return stream.next()"
)
GROWS = plain(
    made="self.register_buffer('all', torch.zeros(0, 16))",
    done="self.all = torch.cat([self.all, ctx.gather(a.detach()).to(self.all)])",
)
KEEPS_IMAGES = plain(
    made="self.register_buffer('images', torch.zeros(data.n_images, data.channels, data.image_size, data.image_size))",
    done="self.images[ctx.gather(batch.index)] = ctx.gather(batch.views[0]).to(self.images)",
)
PICKLES = plain(
    more="def get_extra_state(self):\n    return np.random.default_rng\n\ndef set_extra_state(self, state):\n    pass"
)
FROM_NUMPY = plain(done="a = a + 0.1 * np.random.rand()")
COUNTS = plain(made="self.seen = 0", done="self.seen += 1\na = a + 0.01 * self.seen")
COUNTS_IN_MODULE = "SEEN = [0]\n" + plain(done="SEEN[0] += 1\na = a + 0.01 * SEEN[0]")
COUNTS_PREPARATION = plain(
    made="self.colour = nn.Parameter(torch.zeros(3))\nself.seen = 0",
    more="preparation_steps = 4\n\n"
    "def parameter_groups(self):\n"
    "    mine = [*self.backbone.parameters(), *self.projector.parameters()]\n"
    "    return {'main': mine, 'first': clf.Group([self.colour], {'name': 'sgd', 'lr': 0.1}, preparation=True)}\n\n"
    "def preparation_step(self, ctx):\n"
    "    self.seen += 1\n"
    "    ctx.minimize('first', (self.colour - self.seen).square().mean())",
)
DOES_NOT_GATHER = plain(done="return losses.nt_xent(a, b, 0.5)")
CENTRES = (
    plain(
        more="def encoder(self):\n    return Centred(self.backbone)\n\nclass Unused: pass",
    )
    + """
class Centred(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        h = self.backbone(x)
        return h - h.mean(0)
"""
)
ONE_VIEW = plain(
    more="def views(self):\n    return [clf.simclr_recipe(self.data.image_size, self.data.channels)]\n\n"
    "def embed(self, batch):\n    z = self.projector(self.backbone(batch.views[0]))\n    return z, z.flip(1)"
)
OWN_VIEWS = plain(
    more="def embed(self, batch):\n"
    "    recipe, n = clf.Recipe(16), len(batch)\n"
    "    draws = [recipe.draw(n, torch.Generator().manual_seed(i)) for i in (0, 1)]\n"
    "    views = [clf.Augment(recipe)(batch.images, each).to(batch.views[0]) for each in draws]\n"
    "    return self.projector(self.backbone(torch.cat(views))).chunk(2)"
)

NOTHING_TO_SAY: Mapping[str, tuple[str, str]] = {
    "odd batch": (NEEDS_TEN, "refuses every one of the sizes 9, 7, 2; .*use 10 or more"),
    "views matter": (ONE_VIEW, "asks for 1 view of each image"),
    "views matter, of its own": (OWN_VIEWS, "makes views of its own"),
    "chunks": (COUNTS_IN_MODULE, "two like trainings in one process differ already"),
    "no labels": (COUNTS_IN_MODULE, "two like trainings in one process differ already"),
}
"""By the check that is skipped: a body and the reason."""
WRONG: Mapping[str, tuple[tuple[str, str], ...]] = {
    "trains": (
        (FLOAT, "training_step returned a float at step 1"),
        (DETACHED, "the loss has no gradient at step 1"),
        (INFINITE, r"the loss is -?(nan|inf) at step 3"),
        (IN_PLACE, r"changed in place afterwards: write x = x \* 2"),
        (LOGS_NAN, "the metric 'share' is nan at step 1"),
    ),
    "odd batch": ((FOURS, r"with train.batch_size=9: RuntimeError: .*\(mine.py, line \d+\)"),),
    "one channel": ((COLOURS, r"with images of one channel: RuntimeError: .*\(mine.py, line \d+\)"),),
    "float64": ((SINGLE, "the loss is of type float32 at step 1"),),
    "bf16": (
        (STORES_HALF, r"with train.precision=bf16: RuntimeError: index_copy_.*\(mine.py, line \d+\)"),
        (BECOMES_HALF, "the buffer 'last' was of type float32 and is of type bfloat16 after 4 steps"),
    ),
    "parameters move": (
        (UNUSED_HEAD, r"2 of the \d+ parameters of group 'main' do not learn in 12 steps: 'predictor.weight', "),
        (TRAINED_TEACHER, r"of group 'main' do not learn .* 'teacher.0.weight', .*\(no gradient\)"),
        (LEFT_OUT, r"no group of parameter_groups\(\) has 'projector.0.weight', "),
    ),
    "views matter": ((ONE_VIEW_TWICE, "the loss is the same number, "),),
    "no labels": ((OWN_LABELS, "with labels permuted loss at step 1 is .*: the method reads labels"),),
    "chunks": (
        (HOOKED, r"with train.chunk_size=5, in float64, the loss of step 1 is|RuntimeError"),
        (INSIDE, "the network is given 32 rows at once"),
    ),
    "compile": ((RETUNES, "compiles the network anew in steps 3, 4, 5, 6, "),),
    "state size": (
        (GROWS, r"'all' has the shape \(96, 16\) after 6 steps, \(32, 16\) after 2"),
        (KEEPS_IMAGES, "the saved state grows by 12,288 bytes with each image .* mostly in 'images'"),
        (PICKLES, "a checkpoint cannot be read with torch.load.*: '_extra_state' is no tensor"),
    ),
    "repeatable": ((FROM_NUMPY, "two runs of one configuration differ: Metrics at step 3: loss is "),),
    "resume": (
        (COUNTS, "resumed after 4 of 8 steps: Metrics at step 6: loss is "),
        (COUNTS_IN_MODULE, "resumed after 4 of 8 steps: Metrics at step 6: loss is "),
        (COUNTS_PREPARATION, "resumed after 2 of 4 steps of preparation: "),
    ),
    "ranks": ((DOES_NOT_GATHER, "Metrics at step 1: loss is .* with one process and .* with 2 ranks"),),
    "export": ((CENTRES, "the exported model disagrees with the encoder: least cosine"),),
}
