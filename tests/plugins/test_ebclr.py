"""EBCLR: the objective against closed forms, double loops and finite differences; its steps, buffer and refusals."""

from __future__ import annotations

import math
from typing import Any

import fakes
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import clf
from clf import losses
from clf.data.stream import Stream
from clf_ebclr import EBCLR
from clf_ebclr.config import EBCLRConfig

SIZE, IMAGES, BATCH = 8, 40, 6

STILL: dict[str, Any] = {"noise_max": 0.0, "noise_min": 0.0, "gradient_clamp": 1e-9, "view_noise": 0.0}
"""Chains that do not move, of images without noise."""


class Context(fakes.FakeContext):
    """Training images of a stream."""

    def __init__(self, stream: Stream | None = None, step: int = 0) -> None:
        super().__init__(step=step)
        self.stream = stream

    def images(self, index: Tensor) -> Tensor:
        assert self.stream is not None
        return self.stream.images(index)


def raw(channels: int = 1, n: int = IMAGES) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, SIZE, SIZE), generator=g, dtype=torch.uint8)


def ebclr(*between: nn.Module, channels: int = 1, batch: int = BATCH, **settings: object) -> EBCLR:
    """On a smooth network of two layers with others ``between`` them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.Tanh(), nn.Flatten(), *between, nn.Linear(36, 5))
    backbone = clf.Backbone(network, "smooth", channels, SIZE, (0.5,), (0.5,))
    spec = fakes.data(n_images=IMAGES, image_size=SIZE, channels=channels, batch_size=batch, name="made")
    return EBCLR(backbone, EBCLRConfig.model_validate({"projection_dim": 3, **settings}), spec)


def stream(method: EBCLR, images: Tensor | None = None, batch: int = BATCH) -> Stream:
    return Stream(raw(method.data.channels) if images is None else images, method.views(), batch, seed=1)


def one_step(method: EBCLR, step: int = 0) -> tuple[clf.StepOutput, Context]:
    source = stream(method)
    source.position = step
    ctx = Context(source, step)
    output = method.training_step(source.next(), ctx)
    assert isinstance(output, clf.StepOutput)
    return output, ctx


def energies(u: Tensor, v: Tensor, temperature: float) -> list[float]:
    """Equation 20 by loops: -log of the sum over partners of exp(-||z - z'||^2 / tau)."""
    z, partners = [[x / x.norm() for x in rows] for rows in (u, v)]
    return [-math.log(sum(math.exp(-float(((a - b) ** 2).sum()) / temperature) for b in partners)) for a in z]


def discriminative(u: Tensor, v: Tensor, temperature: float) -> float:
    """The mean over both directions of equation 18 in its full form, whose denominator is a mean of 2N - 1 terms."""
    n, total = len(u), 0.0
    for first, second in ((u, v), (v, u)):
        z, other = [[x / x.norm() for x in rows] for rows in (first, second)]
        for i in range(n):
            rest = [*other, *(z[k] for k in range(n) if k != i)]
            terms = [math.exp(-float(((z[i] - x) ** 2).sum()) / temperature) for x in rest]
            total -= math.log(terms[i] / (sum(terms) / len(terms)))
    return total / (2 * n)


def projections(n: int, seed: int, width: int = 4) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "disc", "gen", "total"),
    [(1.0, 0.2395448, -1.985, 0.0410448), (0.1, 4.1223e-9, -19.985, -1.9985)],
)
def test_closed_forms(temperature: float, disc: float, gen: float, total: float) -> None:
    u = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    v = torch.eye(2, dtype=torch.float64)
    output = ebclr(temperature=temperature).objective(u, v, -v, Context())
    found = {name: float(value) for name, value in output.metrics.items()}
    assert found["discriminative"] == pytest.approx(disc, rel=2e-5)
    assert found["norm_penalty"] == pytest.approx(0.015)  # 0.001 (4 + 9 + 1 + 1)
    assert found["generative"] + found["norm_penalty"] == pytest.approx(gen, rel=1e-6)
    assert float(output.loss) == pytest.approx(total, rel=1e-6)
    assert found["energy_data"] - found["energy_samples"] == pytest.approx(found["generative"])
    assert found["squared_norm"] == pytest.approx((13 / 2 + 1) / 2)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_objective_is_that_of_double_loops(temperature: float) -> None:
    u, v, w = (projections(5, seed) for seed in range(3))
    method = ebclr(temperature=temperature, generative_weight=0.3, norm_penalty=0.02)
    output = method.objective(u, v, w, Context())
    disc = discriminative(u, v, temperature)
    data, samples = (sum(energies(x, v, temperature)) / 5 for x in (u, w))
    penalty = 0.02 * float((u**2).sum() + (w**2).sum())
    constant = math.log(2 * 5 - 1)
    assert float(output.metrics["discriminative"]) == pytest.approx(disc + constant, rel=1e-10)
    assert float(output.metrics["energy_data"]) == pytest.approx(data + math.log(5), rel=1e-10)
    assert float(output.metrics["energy_samples"]) == pytest.approx(samples + math.log(5), rel=1e-10)
    assert float(output.loss) == pytest.approx(disc + constant + 0.3 * (data - samples + penalty), rel=1e-10)


def test_equal_projections_tell_nothing() -> None:
    u = projections(1, 0).expand(7, 4)
    metrics = ebclr().objective(u, u, u, Context()).metrics
    assert float(metrics["discriminative"]) == pytest.approx(math.log(2 * 7 - 1))
    assert [float(metrics[k]) for k in ("energy_data", "energy_samples", "generative")] == pytest.approx([0, 0, 0])


def test_lengths_of_projections_change_the_penalty_only() -> None:
    u, v, w = (projections(5, seed) for seed in range(3))
    method = ebclr()
    one, other = (method.objective(c * u, c * v, c * w, Context()).metrics for c in (1.0, 3.0))
    for name in ("discriminative", "generative", "energy_data", "energy_samples"):
        assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-10)
    assert float(other["norm_penalty"]) == pytest.approx(9 * float(one["norm_penalty"]))


def test_ranks_add_up_the_gradients_of_partners_in_full_precision() -> None:
    gathered = []

    class Recording(Context):
        def gather(self, x: Tensor) -> Tensor:
            gathered.append(x.dtype)
            return x

    u, v, w = (projections(4, seed).bfloat16() for seed in range(3))  # as autocast gives them
    ebclr().objective(u, v, w, Recording())
    assert len(gathered) == 3 and set(gathered) == {torch.float32}


def test_second_views_get_a_gradient_of_the_energies() -> None:
    u, v, w = (projections(4, seed).requires_grad_() for seed in range(3))
    method = ebclr()
    (whole,) = torch.autograd.grad(method.objective(u, v, w, Context()).loss, v)
    (of_disc,) = torch.autograd.grad(method.discriminative(u, v, Context()), v)
    assert float((whole - of_disc).abs().max()) > 1e-3


def test_the_gradient_of_weights_is_lambda_times_that_of_the_energies_apart() -> None:
    """Contrastive divergence (equations 13 and 14) by central differences: up on data, down on samples."""
    method = ebclr(norm_penalty=0.0, temperature=0.5).double()
    x, y, samples = torch.rand(3, 5, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = method.backbone.model[0].weight  # type: ignore[index]

    def parts() -> tuple[Tensor, Tensor, Tensor]:
        return method.project(x), method.project(y), method.project(samples)

    u, v, w = parts()
    generative = method.objective(u, v, w, Context()).loss - method.discriminative(u, v, Context())
    (gradient,) = torch.autograd.grad(generative, weight)

    def difference() -> float:
        with torch.no_grad():
            a, b, c = parts()
        return 0.1 * (sum(energies(a, b, 0.5)) - sum(energies(c, b, 0.5))) / 5

    for place in [(0, 0, 0, 0), (1, 0, 2, 1), (3, 0, 1, 1)]:
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += shift
                values.append(difference())
                weight[place] -= shift
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[place]), rel=1e-6, abs=1e-9)


def test_without_the_generative_term_it_is_nt_xent_at_half_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ebclr(generative_weight=0.0, view_noise=0.0, temperature=0.4)
    monkeypatch.setattr(method, "sample", lambda *_: pytest.fail("nothing is to be sampled"))
    output, _ = one_step(method)
    names = [name for name, _ in method.named_parameters()]
    found = torch.autograd.grad(output.loss, list(method.parameters()))
    views = stream(method).next().views
    a, b = (method.projector(method.backbone(view)) for view in views)
    expected = losses.nt_xent(a, b, 0.2)
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, one, other in zip(names, found, torch.autograd.grad(expected, list(method.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
    assert not any(key.startswith("buffer") for key in method.state_dict())
    assert not method.pictures()


def test_sampling_touches_nothing_but_the_buffer() -> None:
    method = ebclr(nn.Dropout(0.5)).train()
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    source = stream(method)
    partners = projections(BATCH, 0, width=3).float()
    samples = method.sample(source.next(), partners, Context(source))
    assert not samples.requires_grad and samples.shape == (BATCH, 1, SIZE, SIZE)
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"buffer.images", "buffer.visits"}
    assert all(module.training for module in method.modules())
    assert all(p.requires_grad and torch.equal(p.grad, torch.ones_like(p)) for p in method.parameters())  # type: ignore[arg-type]


def test_autocast_does_not_reach_the_chains() -> None:
    ends = []
    for enabled in (False, True):
        method = ebclr()
        source = stream(method)
        partners = projections(BATCH, 0, width=3).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            ends.append(method.sample(source.next(), partners, Context(source)))
    assert torch.equal(*ends)


def test_chunks_of_the_backbone_change_no_chain() -> None:
    ends = []
    for size in (None, 4):
        method = ebclr().double()
        method.backbone.chunk_size = size
        source = Stream(raw(), method.views(), BATCH, seed=1, dtype=torch.float64)
        ends.append(method.sample(source.next(), projections(BATCH, 0, width=3), Context(source)))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)


def test_partners_have_no_gradient_in_the_chains_and_samples_none_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ebclr()
    seen: list[Tensor] = []
    own = method.sample

    def sample(batch: clf.Batch, partners: Tensor, ctx: clf.Context) -> Tensor:
        seen.extend([partners, own(batch, partners, ctx)])
        return seen[1]

    monkeypatch.setattr(method, "sample", sample)
    output, _ = one_step(method)
    assert not any(x.requires_grad for x in seen)
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in method.parameters())


def test_the_buffer_starts_with_augmented_training_images_past_all_stages() -> None:
    method = ebclr(restart=0.0, buffer_chunk=7, **STILL)
    assert not method.buffer.filled
    _, ctx = one_step(method)
    assert method.buffer.filled and len(method.buffer.images) == IMAGES
    assert sorted(method.buffer.visits.tolist()) == [5] * (IMAGES - BATCH) + [6] * BATCH
    images = method.buffer.images
    assert float(images.min()) >= -1 - 1e-6 and float(images.max()) <= 1 + 1e-6 and float(images.std()) > 0.3
    assert ctx.logged["restarted"] == 0


def test_initial_images_have_the_noise_of_views() -> None:
    quiet, noisy = (ebclr(view_noise=noise) for noise in (0.0, 0.03))
    for method in (quiet, noisy):
        one_step(method)
    untouched = (quiet.buffer.visits == 5) & (noisy.buffer.visits == 5)
    noise = (noisy.buffer.images - quiet.buffer.images)[untouched]
    assert float(noise.std()) == pytest.approx(0.06, rel=0.1)  # 0.03 in [0, 1] is 0.06 in [-1, 1]
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_a_step_moves_its_slots_only_and_counts_their_visits() -> None:
    method = ebclr(restart=0.5)
    one_step(method)
    images, visits = method.buffer.images.clone(), method.buffer.visits.clone()
    _, ctx = one_step(method, step=1)
    slots = method.buffer.draw(BATCH, ctx.generator("slots"))
    fresh = method._restarts(BATCH, ctx.generator("restarts"))
    assert 0 < int(fresh.sum()) < BATCH and ctx.logged["restarted"] == float(fresh.double().mean())
    assert method.buffer.visits[slots].tolist() == torch.where(fresh, 1, visits[slots] + 1).tolist()
    others = torch.ones(IMAGES, dtype=torch.bool).index_fill_(0, slots, False)
    assert torch.equal(method.buffer.images[others], images[others])
    assert torch.equal(method.buffer.visits[others], visits[others])
    assert not (method.buffer.images[slots] == images[slots]).flatten(1).all(1).any()


def test_old_chains_take_up_where_they_ended_and_fresh_ones_at_new_views() -> None:
    old, new = ebclr(restart=0.0, **STILL), ebclr(restart=1.0, **STILL)
    for method in (old, new):
        one_step(method)
    before = old.buffer.images.clone()
    one_step(old, step=1)
    torch.testing.assert_close(old.buffer.images, before, rtol=0, atol=1e-6)
    before = new.buffer.images.clone()
    _, ctx = one_step(new, step=1)
    slots = new.buffer.draw(BATCH, ctx.generator("slots"))
    index = torch.randint(IMAGES, (BATCH,), generator=ctx.generator("restart images"))
    source = stream(new)
    views = source.next().augment(source.images(index), ctx.generator("restart views"), torch.arange(BATCH))[0]
    torch.testing.assert_close(new.buffer.images[slots], 2 * views - 1, rtol=0, atol=1e-6)


def test_a_mixed_proposal_is_data_and_uniform_noise() -> None:
    samples = []
    for mix in (1.0, 0.25, 0.0):
        method = ebclr(proposal_mix=mix, restart=1.0, **STILL)
        source = stream(method)
        samples.append(method.sample(source.next(), projections(BATCH, 0, width=3).float(), Context(source)))
    data, mixed, noise = samples
    torch.testing.assert_close(mixed, 0.25 * data + 0.75 * noise, rtol=0, atol=1e-5)
    assert float(noise.min()) >= -1 - 1e-6 and float(noise.max()) <= 1 + 1e-6
    assert float(noise.std()) == pytest.approx(1 / math.sqrt(3), rel=0.1)


def test_fresh_chains_have_the_largest_noise_and_old_ones_the_least() -> None:
    for restart, sigma in ((1.0, 0.5), (0.0, 0.01)):
        ends = []
        for changes in ({}, {"noise_min": 0.01, "noise_max": 0.5}):
            method = ebclr(restart=restart, sgld_steps=1, **{**STILL, **changes})
            source = stream(method)
            ends.append(method.sample(source.next(), projections(BATCH, 0, width=3).float(), Context(source)))
        assert float((ends[1] - ends[0]).std()) == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize(
    ("rule", "m", "rate"), [("bernoulli", 64, 0.2), ("fixed", 128, 0.178), ("fixed", 64, 0.172), ("fixed", 16, 0.176)]
)
def test_chains_restart_at_the_stated_rate(rule: str, m: int, rate: float) -> None:
    """Of int(rho m) places drawn with replacement 1 - (1 - 1/m)^int(rho m) of the m are distinct."""
    method = ebclr(restart=0.2, restart_rule=rule)
    if rule == "fixed":
        assert 1 - (1 - 1 / m) ** int(0.2 * m) == pytest.approx(rate, abs=6e-4)
    draws = [method._restarts(m, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    assert float(torch.stack(draws).double().mean()) == pytest.approx(rate, abs=4 * math.sqrt(0.16 / 2000 / m) + 6e-4)


def test_a_saved_method_takes_the_same_next_step() -> None:
    method, other = ebclr(), ebclr()
    one_step(method)
    other.load_state_dict(method.state_dict())
    assert other.buffer.filled
    mine, its = one_step(method, step=1)[0], one_step(other, step=1)[0]
    assert torch.equal(mine.loss, its.loss)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


def test_two_parts_of_the_first_step_fill_the_buffer_once() -> None:
    method = ebclr(restart=0.0)
    one_step(method)
    one_step(method)  # the same step, so the same slots
    assert sorted(method.buffer.visits.tolist()) == [5] * (IMAGES - BATCH) + [7] * BATCH


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, while it traces
def test_a_traced_network_gives_the_same_step() -> None:
    """Its backward has the gradients of input and weights in one piece; the chains need the former only."""
    found = []
    for traced in (False, True):
        method = ebclr().double()
        if traced:
            method.backbone.model.compile(backend="aot_eager", dynamic=False)
        source = Stream(raw(), method.views(), BATCH, seed=1, dtype=torch.float64)
        output = method.training_step(source.next(), Context(source))
        assert isinstance(output, clf.StepOutput)
        found.append((output.loss, torch.autograd.grad(output.loss, list(method.parameters())), method.buffer.images))
    (loss, gradients, images), (other, others, its) = found
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(its, images, rtol=0, atol=1e-12)
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def test_fewer_rows_than_a_batch_are_a_step_too() -> None:
    method = ebclr()
    source = Stream(raw(n=4), method.views(), 4, seed=1)
    output = method.training_step(source.next(), Context(stream(method)))
    assert isinstance(output, clf.StepOutput) and bool(torch.isfinite(output.loss))
    assert int((method.buffer.visits != 5).sum()) == 4


def of_equal_images(method: EBCLR) -> Tensor:
    """Views of a whole epoch of one image, in the order of the training set."""
    source = stream(method, raw(3)[:1].expand(IMAGES, -1, -1, -1).contiguous(), batch=10)
    batches = [source.next() for _ in range(4)]
    order = torch.cat([batch.index for batch in batches]).argsort()
    return torch.cat([batch.views[0] for batch in batches])[order]


def test_chunked_augmentation_draws_once_for_as_many_images_as_a_batch_has() -> None:
    chunked = of_equal_images(ebclr(channels=3, batch=10, augmentation="chunked"))
    for first in range(0, IMAGES, 10):
        part = chunked[first : first + 10]
        torch.testing.assert_close(part, part[:1].expand_as(part), rtol=0, atol=1e-6)
    assert not torch.equal(chunked[0], chunked[10])
    alone = of_equal_images(ebclr(channels=3, batch=10))
    assert len({tuple(view.flatten().tolist()) for view in alone}) == IMAGES


def test_chunked_augmentation_fills_the_buffer_in_its_own_chunks() -> None:
    method = ebclr(view_noise=0.0, restart=0.0, buffer_chunk=8, buffer_size=32, augmentation="chunked")
    source = stream(method, raw()[:1].expand(IMAGES, -1, -1, -1).contiguous())
    method.training_step(source.next(), Context(source))
    kept = [
        method.buffer.images[first : first + 8][method.buffer.visits[first : first + 8] == 5]
        for first in range(0, 32, 8)
    ]
    for part in kept:
        torch.testing.assert_close(part, part[:1].expand_as(part), rtol=0, atol=1e-6)
    assert not torch.equal(kept[0][0], kept[1][0])


def test_recipes_are_those_of_the_official_code() -> None:
    for view in ebclr(channels=3).views():
        assert (view.crop_area, view.flip, view.jitter, view.grayscale, view.blur) == ((0.08, 1), 0.5, 0.8, 0.2, 1)
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
        assert view.blur_sigma == (0.1, 2)
        assert view.shared_by == 1
    for view in ebclr(augmentation="chunked").views():
        assert (view.crop_area, view.flip, view.jitter, view.grayscale, view.blur) == ((0.08, 1), 0, 0, 0, 0)
        assert view.shared_by == BATCH


def test_views_have_noise_and_are_not_clipped() -> None:
    method = ebclr()
    white = torch.ones(2, 500, 1, SIZE, SIZE)
    noisy = method._noisy(tuple(white), Context())
    for view in noisy:
        assert float(view.mean()) == pytest.approx(1, abs=1e-3) and float(view.std()) == pytest.approx(0.03, rel=0.02)
        assert float(view.max()) > 1.05
    assert not torch.equal(*noisy)


def test_metrics_are_the_same_in_every_step_and_pictures_have_a_shape() -> None:
    method = ebclr(channels=3)
    assert not method.pictures()
    names = []
    for step in range(3):
        output, ctx = one_step(method, step)
        values = {**output.metrics, **ctx.logged}
        names.append(sorted(values))
        assert all(math.isfinite(float(value)) for value in values.values())
    of_loss = ["discriminative", "generative", "norm_penalty", "energy_data", "energy_samples", "squared_norm"]
    of_chains = ["clamp_rate", "restarted", "pixels_outside", "largest_pixel"]
    assert names[0] == names[1] == names[2] == sorted([*of_loss, *of_chains])
    ((title, images),) = method.pictures().items()
    assert images.shape == (5, 8, 3, SIZE, SIZE) and "youngest (1 visits)" in title


def test_the_size_and_the_restarts_of_the_buffer_are_derived_from_the_data() -> None:
    config, backbone = EBCLRConfig(), ebclr().backbone
    for name, restart in (("mnist", 0.4), ("fashion_mnist", 0.6), ("cifar10", 0.2)):
        spec = fakes.data(n_images=IMAGES, image_size=SIZE, channels=1, batch_size=BATCH, name=name)
        assert EBCLR(backbone, config, spec).restart == restart
    large = fakes.data(n_images=60_000, image_size=SIZE, channels=1, batch_size=BATCH)
    assert EBCLR(backbone, config, large).buffer.length == 50_000


def test_impossible_settings_get_a_sentence() -> None:
    with pytest.raises(clf.ConfigError, match=r"batch norm would mix the images .* set backbone\.norm=none"):
        ebclr(nn.Unflatten(1, (36, 1, 1)), nn.BatchNorm2d(36), nn.Flatten())
    ebclr(nn.Unflatten(1, (36, 1, 1)), nn.BatchNorm2d(36), nn.Flatten(), generative_weight=0.0)
    with pytest.raises(clf.ConfigError, match=r"method\.buffer_size = 5 holds fewer chains .*train\.batch_size = 6"):
        ebclr(buffer_size=5)
    with pytest.raises(ValidationError, match=r"below method\.noise_min = 0\.2"):
        EBCLRConfig(noise_min=0.2)
    with pytest.raises(ValidationError, match=r"greater than 0"):
        EBCLRConfig(temperature=0.0)


def test_the_recommended_network_has_no_norm() -> None:
    keys = ("norm", "activation", "normalize")
    assert [EBCLR.defaults[f"backbone.{key}"] for key in keys] == ["none", "leaky_relu", "half"]
    assert EBCLR.defaults["optimizer.lr"] == 2e-4 and EBCLR.min_batch_size == 16
    kinds = [type(layer) for layer in ebclr().projector]
    assert kinds == [nn.Linear, nn.LeakyReLU, nn.Linear]
    assert ebclr().projector[1].negative_slope == 0.2
