"""Losses, control and augmentations of hard_sample_gen, apart from the training: values, gradients, symmetries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rank_threads import Gather, on_ranks
from torch import Tensor

import clf
from clf.losses import nt_xent
from clf_hard_sample_gen import hardness, losses, views
from clf_hard_sample_gen.diff_augment import diff_augment


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(kinds: Sequence[Tensor], tau: float = 0.5, omega: float = 1.0, **choice: str) -> Tensor:
    real, synthetic = losses.many_views(kinds, tau, **choice)  # type: ignore[arg-type]
    return losses.weighted(real, synthetic, omega).loss


def naive(kinds: Sequence[Tensor], tau: float, omega: float, positives: str, denominator: str) -> float:
    """Equation 1 one pair at a time, over rows (kind, instance, vector)."""
    rows = [(k, i, F.normalize(z, dim=0)) for k, kind in enumerate(kinds) for view in kind for i, z in enumerate(view)]
    total = weights = 0.0
    for a, (k, i, z) in enumerate(rows):
        s = [float(z @ other) / tau for _, _, other in rows]
        mine = [b for b, (sort, j, _) in enumerate(rows) if b != a and (sort, j) == (k, i)]
        far = [
            b for b, (sort, j, _) in enumerate(rows) if (sort, j) != (k, i) and (denominator == "joint" or sort == k)
        ]
        if positives == "pairwise":
            each = [math.log(1 + sum(math.exp(s[b]) for b in far) / math.exp(s[p])) for p in mine]
        else:
            below = math.log(sum(math.exp(s[b]) for b in far + mine))
            each = [below - s[p] for p in mine]
        w = 1.0 if k == 0 else omega
        total += w * sum(each) / len(each)
        weights += w
    return total / weights


def test_golden_values() -> None:
    """Five images, three latents, 22 views: all alike, and one direction for each instance."""
    alike = [torch.ones(2, 5, 8, dtype=torch.float64), torch.ones(4, 3, 8, dtype=torch.float64)]
    assert loss_of(alike).item() == pytest.approx(2.98993, abs=1e-5)
    assert loss_of(alike).item() == pytest.approx((10 * math.log(21) + 12 * math.log(19)) / 22, abs=1e-12)
    axes = torch.eye(8, dtype=torch.float64)
    own = [axes[:5].expand(2, 5, 8), axes[5:].expand(4, 3, 8)]
    assert loss_of(own).item() == pytest.approx(1.26878, abs=1e-5)
    exact = (10 * math.log(1 + 20 * math.exp(-2)) + 12 * math.log(1 + 18 * math.exp(-2))) / 22
    assert loss_of(own).item() == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("denominator", ["joint", "separate"])
@pytest.mark.parametrize("positives", ["pairwise", "supcon"])
@given(
    n=st.integers(2, 4), m=st.integers(2, 3), p=st.sampled_from([2, 4]), tau=st.floats(0.1, 2), seed=st.integers(0, 99)
)
def test_equals_the_double_loop(
    positives: str, denominator: str, n: int, m: int, p: int, tau: float, seed: int
) -> None:
    kinds = [made(2, n, 5, seed=seed), made(p, m, 5, seed=seed + 1)]
    found = loss_of(kinds, tau, 0.5, positives=positives, denominator=denominator)
    assert found.item() == pytest.approx(naive(kinds, tau, 0.5, positives, denominator), rel=1e-9)


def test_real_images_alone_have_the_loss_of_simclr() -> None:
    z = made(2, 6, 5)
    (alone,) = losses.many_views([z], 0.3)
    torch.testing.assert_close(alone.mean(), nt_xent(z[0], z[1], 0.3))
    (alone,) = losses.many_views([z], 0.3, positives="supcon")  # one positive: the two forms are one
    torch.testing.assert_close(alone.mean(), nt_xent(z[0], z[1], 0.3))


def test_order_of_instances_names_of_the_twins_and_rotation_do_not_matter() -> None:
    kinds = [made(2, 4, 6), made(4, 3, 6, seed=1)]
    rotation = torch.linalg.qr(made(6, 6, seed=2))[0]
    for other in (
        [kinds[0][:, [2, 0, 3, 1]], kinds[1][:, [1, 2, 0]]],
        [kinds[0][[1, 0]], kinds[1][[2, 3, 0, 1]]],
        [kind @ rotation for kind in kinds],
        [kinds[0] * 3, kinds[1] * 0.1],
    ):
        torch.testing.assert_close(loss_of(other), loss_of(kinds))


def test_gradient_against_finite_differences() -> None:
    kinds = (made(2, 3, 4).requires_grad_(), made(4, 2, 4, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: loss_of([a, b], 0.4, 0.7), kinds)


def test_ranks_have_the_loss_and_the_gradient_of_one_process() -> None:
    kinds = [made(2, 4, 5).requires_grad_(), made(4, 4, 5, seed=1).requires_grad_()]

    def work(rank: int, gather: Gather) -> Tensor:
        mine = slice(2 * rank, 2 * rank + 2)
        real, fake = losses.many_views([z[:, mine] for z in kinds], 0.5, gather=gather, rank=rank)
        return losses.weighted(real, fake, 0.5).loss

    together = torch.stack(on_ranks(2, work)).mean()
    torch.testing.assert_close(together, loss_of(kinds, 0.5, 0.5))
    for found, expected in zip(
        torch.autograd.grad(together, kinds), torch.autograd.grad(loss_of(kinds, 0.5, 0.5), kinds), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_keys_against_the_queue() -> None:
    """One key is InfoNCE; of two keys each has a problem of its own."""
    q, k, twin, queue = (F.normalize(made(4, 6, seed=s), dim=1) for s in range(4))
    one = losses.keys(q, [k], queue, 0.2)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    torch.testing.assert_close(one, F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), reduction="none"))
    torch.testing.assert_close(losses.keys(q, [k, twin], queue, 0.2), (one + losses.keys(q, [twin], queue, 0.2)) / 2)


def test_discriminators_hinge() -> None:
    real, fakes = torch.tensor([2.0, 0.5]), [torch.tensor([-3.0, 0.0]), torch.tensor([1.0, -0.5])]
    assert losses.discriminator(real, fakes).item() == pytest.approx(0.25 + (0.5 + 1.25) / 2)


def test_hardness_is_the_mean_over_eight_pairs() -> None:
    real, tau = F.normalize(made(7, 5), dim=1), 0.4
    y = [F.normalize(made(3, 5, seed=s), dim=1) for s in range(1, 5)]
    found = losses.hardness(y, real, tau)
    for j in range(3):
        terms = []
        for mine, other in ((0, 1), (1, 0)):
            for a in y[2 * mine : 2 * mine + 2]:
                for b in y[2 * other : 2 * other + 2]:
                    far = sum(math.exp(float(a[j] @ r) / tau) for r in real)
                    terms.append(math.log(1 + far / math.exp(float(a[j] @ b[j]) / tau)))
        assert len(terms) == 8
        assert found[j].item() == pytest.approx(sum(terms) / 8, rel=1e-12)
    cosines = torch.stack([(a * b).sum(1) for a in y[:2] for b in y[2:]]).mean(0)
    torch.testing.assert_close(losses.pair_cosine(y), cosines)
    torch.testing.assert_close(losses.hardness(y, real, tau, negatives=False), -cosines / tau)
    torch.testing.assert_close(losses.pair_cosine(y[:2]), (y[0] * y[1]).sum(1))


def test_control_has_three_answers() -> None:
    c = torch.tensor([0.9, 0.51, 0.45, 0.39, -1.0])
    assert hardness.control(c, 0.5, 0.1).tolist() == [1, 1, 0, -1, -1]
    assert hardness.control(c, 0.5, 0.1, two_sided=False).tolist() == [1, 1, 0, 0, 0]


def test_the_ramp_is_0_until_it_starts_and_1_after_its_length() -> None:
    """Warm-up to 0.1, then 0.3 of the remaining 0.9: full at 0.37."""
    found = [hardness.ramp(t / 100, 0.1, 0.3) for t in range(101)]
    assert found[:11] == [0.0] * 11 and found[38:] == [1.0] * 63
    assert found == sorted(found)
    assert found[19] == pytest.approx(1 / 3)


def test_the_weight_makes_hardness_kappa_times_as_strong_as_realism() -> None:
    realism, hard = [made(2, 3), made(2, 3, seed=1)], [1e-3 * made(2, 3, seed=2), 1e-3 * made(2, 3, seed=3)]
    pull = hardness.balance(realism, hard, 0.3, hardness.squared_norms(realism, hard))
    adversarial, difficulty = (torch.cat(each).norm() for each in (realism, hard))
    assert float(pull.weight * difficulty / adversarial) == pytest.approx(0.3, abs=1e-4)
    for found, a, h in zip(pull.gradients, realism, hard, strict=True):
        torch.testing.assert_close(found, a - pull.weight * h)
    none = [torch.zeros(2, 3, dtype=torch.float64)] * 2
    still = hardness.balance(realism, none, 0.3, hardness.squared_norms(realism, none))
    assert still.weight == 0 and torch.equal(still.gradients[0], realism[0])
    faint = [1e-9 * h for h in hard]
    assert (
        hardness.balance(realism, faint, 0.3, hardness.squared_norms(realism, faint)).weight == hardness.LARGEST_WEIGHT
    )


def recipe(**changes: object) -> clf.Recipe:
    return clf.Recipe(size=16, hue=0.0, blur=0.5, solarize=0.3).with_overrides(changes)


def draws(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "size"), [(16, 16), (32, 20), (16, 24)])
def test_views_are_the_engines_where_no_hue_turns(channels: int, side: int, size: int) -> None:
    """The same linear maps and blends in another order of sums: float64 leaves 1e-12."""
    images = torch.randint(0, 256, (30, channels, side, side), generator=draws(0), dtype=torch.uint8)
    grey = {"saturation": 0.0, "grayscale": 0.0} if channels == 1 else {}
    wanted = recipe(size=size, **grey)
    expected = clf.Augment(wanted)(images, wanted.draw(30, draws()), torch.float64)
    found = views.augment(images.double() / 255, wanted, draws(), slice(0, 30), 30)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_views_of_a_rank_are_its_rows_of_all() -> None:
    images = torch.rand(12, 3, 16, 16, generator=draws(0))
    wanted = recipe(hue=0.2, shared_by=2)
    whole = views.augment(images, wanted, draws(), slice(0, 12), 12)
    torch.testing.assert_close(views.augment(images[6:], wanted, draws(), slice(6, 12), 12), whole[6:])
    torch.testing.assert_close(whole[0::2][0], views.augment(images[:1], wanted, draws(), slice(0, 1), 12)[0])


def test_hue_turns_from_red_to_green_to_blue_and_keeps_the_luma() -> None:
    red = torch.tensor([1.0, 0, 0], dtype=torch.float64).view(1, 3, 1, 1)
    for thirds, brightest in ((0, 0), (1, 1), (2, 2), (3, 0)):
        turned = (views.hue_matrix(torch.tensor([thirds / 3])) @ red.flatten(2))[0, :, 0]
        assert int(turned.argmax()) == brightest
        assert float(turned @ torch.tensor(views.YIQ[0], dtype=torch.float64)) == pytest.approx(0.299)
    assert torch.allclose(views.hue_matrix(torch.zeros(1)), torch.eye(3, dtype=torch.float64))


def test_gradient_of_views_against_finite_differences() -> None:
    x = (0.3 + 0.4 * torch.rand(2, 3, 4, 4, generator=draws(0), dtype=torch.float64)).requires_grad_()
    gentle = clf.Recipe(size=4, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05, blur=0.5)
    assert torch.autograd.gradcheck(lambda y: views.augment(y, gentle, draws(), slice(0, 2), 2), (x,))


def halves(n: int = 1) -> Tensor:
    return torch.full((n, 7), 0.5, dtype=torch.float64)


def test_diff_augment_with_middle_draws_changes_no_colour_and_moves_nothing() -> None:
    x = made(2, 3, 8, 8)
    torch.testing.assert_close(diff_augment(x, halves(2), "color_translation"), x)
    assert torch.equal(diff_augment(x, halves(2), "none"), x)


def test_diff_augment_by_hand() -> None:
    x = made(1, 3, 8, 8)
    u = halves()
    u[0, :3] = torch.tensor([1.0, 0.0, 1.0])  # brighter by 0.5, no saturation, contrast 1.5
    grey = x.mean(1, keepdim=True).expand_as(x) + 0.5
    torch.testing.assert_close(diff_augment(x, u, "color"), 1.5 * (grey - grey.mean()) + grey.mean())
    u = halves()
    u[0, 3:5] = torch.tensor([0.99, 0.0])  # down by an eighth of 8, left by as much
    moved = diff_augment(x, u, "translation")
    torch.testing.assert_close(moved[:, :, 1:, :-1], x[:, :, :-1, 1:])
    assert not moved[:, :, 0].any() and not moved[:, :, :, -1].any()


@given(seed=st.integers(0, 200))
def test_cutout_hides_a_square_of_half_the_side_as_far_as_it_lies_inside(seed: int) -> None:
    u = torch.rand(1, 7, generator=draws(seed), dtype=torch.float64)
    hidden = diff_augment(torch.ones(1, 1, 8, 8), u, "cutout")[0, 0] == 0
    rows, columns = hidden.any(1).sum(), hidden.any(0).sum()
    assert hidden.sum() == rows * columns and 2 <= rows <= 4 and 2 <= columns <= 4


def test_gradient_of_diff_augment_and_its_bad_arguments() -> None:
    x = made(2, 3, 4, 4).requires_grad_()
    u = torch.rand(2, 7, generator=draws(), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: diff_augment(y, u, "color_translation_cutout"), (x,))
    with pytest.raises(ValueError, match="'blur'"):
        diff_augment(x, u, "blur")
    with pytest.raises(ValueError, match=r"\(2, 7\)"):
        diff_augment(x, u[:1], "color")
