"""EBCLR's energy, its chains and their buffer: closed forms, bounds, what a chain may do, what stays untouched."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import clf
from clf_ebclr import buffer as buffer_module
from clf_ebclr.buffer import ReplayBuffer
from clf_ebclr.energy import log_density, squared_distance
from clf_ebclr.sampler import frozen, noise_scale, normal, run_chains


def rows(n: int, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(x: Tensor) -> Tensor:
    """(n, 1, 3, 3) -> (n,): the log-density under a small smooth network and four partners."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)).double().requires_grad_(False)
    return log_density(network(x), rows(4, 4), 0.5)


def still() -> Tensor:
    return torch.zeros(())


def test_squared_distances_are_those_of_directions() -> None:
    u, w = rows(4), rows(3, seed=1)
    for i in range(4):
        for j in range(3):
            z, other = u[i] / u[i].norm(), w[j] / w[j].norm()
            assert squared_distance(u, w)[i, j] == pytest.approx(float(((z - other) ** 2).sum()), abs=1e-12)
    assert float(squared_distance(u.float(), u.float()).min()) >= 0


@pytest.mark.parametrize(("temperature", "same", "opposite"), [(1.0, 0.1269280, -1.8730720), (0.1, 2.0612e-9, -20.0)])
def test_log_densities_of_orthogonal_partners(temperature: float, same: float, opposite: float) -> None:
    """Distances 0 and 2: log(1 + exp(-2 / tau)); distances 2 and 4: that less 2 / tau."""
    partners = torch.eye(2, dtype=torch.float64)
    u = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert log_density(u, partners, temperature).tolist() == pytest.approx([same] * 2, rel=1e-4, abs=5e-8)
    assert log_density(-partners, partners, temperature).tolist() == pytest.approx([opposite] * 2, rel=1e-6)


@given(
    m=st.integers(1, 9),
    temperature=st.floats(0.05, 3),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 999),
)
def test_log_densities_are_bounded_and_know_directions_only(
    m: int, temperature: float, scale: float, seed: int
) -> None:
    u, w = rows(4, seed=seed), rows(m, seed=seed + 1)
    found = log_density(u, w, temperature)
    assert bool((found <= math.log(m) + 1e-9).all()) and bool((found >= math.log(m) - 4 / temperature - 1e-9).all())
    torch.testing.assert_close(log_density(scale * u, w / scale, temperature), found, rtol=1e-9, atol=1e-9)


def test_equal_projections_have_the_largest_log_density_and_opposite_ones_the_least() -> None:
    u = rows(1).expand(4, 5)
    assert log_density(u, u, 0.1).tolist() == pytest.approx([math.log(4)] * 4)
    assert log_density(u, -u, 0.1).tolist() == pytest.approx([math.log(4) - 40] * 4)


def test_half_precision_is_not_used_inside_autocast() -> None:
    u, w = rows(4).float(), rows(4, seed=1).float()
    expected = log_density(u, w, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_density(u, w, 0.1), expected)
    assert log_density(u.bfloat16(), w, 0.1).dtype == torch.float32


def test_noise_falls_with_visits_to_its_minimum() -> None:
    sigma = noise_scale(torch.tensor([0, 1, 2, 3, 5, 100]), 0.01, 0.05, 3)
    assert sigma.tolist() == pytest.approx([0.05, 0.0366667, 0.0233333, 0.01, 0.01, 0.01], abs=1e-6)


def test_without_noise_each_small_step_raises_the_log_density() -> None:
    x = rows(6, 9, seed=2).view(6, 1, 3, 3)
    means = [float(smooth(x).mean())]
    for _ in range(12):
        x, clamped = run_chains(smooth, x, torch.zeros(6), still, steps=1, step_size=0.02, clamp=1.0)
        means.append(float(smooth(x).mean()))
        assert float(clamped) < 1
    assert all(later > earlier for earlier, later in pairwise(means))
    assert means[-1] > means[0] + 0.05


def test_one_step_is_the_equation() -> None:
    x = rows(3, 9).view(3, 1, 3, 3)
    noise = rows(3, 9, seed=5).view(3, 1, 3, 3)
    sigma = torch.tensor([0.05, 0.02, 0.0], dtype=torch.float64)
    given_to = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(smooth(given_to).sum(), given_to)
    limit = float(g.abs().median())
    found, clamped = run_chains(smooth, x, sigma, lambda: noise, steps=1, step_size=0.5, clamp=limit)
    expected = x + 0.5 * g.clamp(-limit, limit) + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert float(clamped) == pytest.approx(float((g.abs() > limit).double().mean()))
    assert 0 < float(clamped) < 1


def test_a_chain_moves_by_the_clamp_at_most_and_knows_no_range_of_pixels() -> None:
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    steep = torch.tensor([100.0, -100.0, 0.4, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    found, clamped = run_chains(
        lambda y: (steep * y).sum((1, 2, 3)), x, torch.zeros(2), still, steps=50, step_size=0.05, clamp=1.0
    )
    torch.testing.assert_close(found[0].flatten(), torch.tensor([2.5, -2.5, 1.0, 0.0], dtype=torch.float64))
    assert float(clamped) == pytest.approx(0.5)
    start = x.new_zeros(2, 1, 3, 3)
    moved, _ = run_chains(smooth, start, torch.zeros(2), still, steps=10, step_size=0.05, clamp=0.01)
    assert 0 < float(moved.abs().max()) <= 10 * 0.05 * 0.01 + 1e-12


def test_without_step_and_noise_a_chain_stays() -> None:
    x = rows(3, 9).view(3, 1, 3, 3)
    found, _ = run_chains(smooth, x, torch.zeros(3), still, steps=5, step_size=0.0, clamp=1.0)
    assert torch.equal(found, x)


def test_pieces_and_other_rows_change_no_chain() -> None:
    x = rows(7, 9).view(7, 1, 3, 3)
    settings: dict[str, Any] = {"steps": 4, "step_size": 0.3, "clamp": 0.2}
    whole, rate = run_chains(smooth, x, torch.zeros(7), still, **settings)
    parts, other = run_chains(smooth, x, torch.zeros(7), still, pieces=3, **settings)
    alone, _ = run_chains(smooth, x[2:3], torch.zeros(1), still, **settings)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(alone, whole[2:3], rtol=0, atol=1e-14)
    assert float(other) == pytest.approx(float(rate))


def test_frozen_networks_are_functions_of_their_input_and_come_back_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    network[2].eval()
    network[3].weight.grad = torch.ones(2, 4)
    flags = [m.training for m in network.modules()]
    wanted = [p.requires_grad for p in network.parameters()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(6, 1, 2, 2)

    def density(y: Tensor) -> Tensor:
        u: Tensor = network(y.flatten(1))
        return u.sum(1)

    with pytest.raises(KeyError), frozen(network):
        assert torch.equal(density(x), density(x))
        assert not any(p.requires_grad for p in network.parameters())
        found, _ = run_chains(density, x, torch.zeros(6), still, steps=2, step_size=0.1, clamp=1.0)
        assert not found.requires_grad and not torch.equal(found, x)
        raise KeyError
    assert [m.training for m in network.modules()] == flags
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(network[3].weight.grad, torch.ones(2, 4))
    assert all(p.grad is None for p in network[2].parameters())


def test_a_graph_that_was_made_before_freezing_keeps_its_gradient() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = rows(4, 3).view(4, 3, 1, 1)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    before = network(x)
    with frozen(network):
        run_chains(lambda y: network(y)[:, 0], x, torch.zeros(4), still, steps=1, step_size=0.1, clamp=1.0)
    before.square().sum().backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_normal_numbers_of_all_rows_do_not_depend_on_this_ranks() -> None:
    whole = normal(6, torch.zeros(6, 2, 3), torch.Generator().manual_seed(1))
    part = normal(6, torch.zeros(2, 2, 3), torch.Generator().manual_seed(1))
    assert torch.equal(whole, part) and whole.shape == (6, 2, 3)
    assert normal(2, torch.zeros(1, 2, dtype=torch.float64), torch.Generator()).dtype == torch.float64


def with_room(length: int, shape: tuple[int, int, int]) -> ReplayBuffer:
    buffer = ReplayBuffer(length, shape)
    buffer.make_room()
    return buffer


def test_slots_are_distinct_and_a_function_of_the_generator() -> None:
    buffer = with_room(40, (1, 2, 2))
    first = buffer.draw(16, torch.Generator().manual_seed(3))
    assert torch.equal(first, buffer.draw(16, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, buffer.draw(16, torch.Generator().manual_seed(4)))
    assert len(set(first.tolist())) == 16 and int(first.min()) >= 0 and int(first.max()) < 40
    assert buffer.draw(40, torch.Generator()).sort().values.tolist() == list(range(40))


def test_writing_touches_its_slots_only() -> None:
    buffer = with_room(5, (1, 1, 2))
    buffer.write(torch.arange(5), torch.arange(10.0).view(5, 1, 1, 2), torch.arange(5))
    buffer.write(torch.tensor([3, 1]), torch.tensor([-3.0, -3.5, -1.0, -1.5]).view(2, 1, 1, 2), torch.tensor([30, 10]))
    assert buffer.images.flatten().tolist() == [0, 1, -1, -1.5, 4, 5, -3, -3.5, 8, 9]
    assert buffer.visits.tolist() == [0, 10, 2, 30, 4]
    assert set(buffer.state_dict()) == {"images", "visits"}


def test_pictures_go_from_young_to_old() -> None:
    buffer = with_room(12, (1, 1, 1))
    visits = torch.arange(11, -1, -1)
    buffer.write(torch.arange(12), visits.view(12, 1, 1, 1) / 5.5 - 1, visits)
    shown = buffer.by_age(3, 4)
    assert shown.shape == (3, 4, 1, 1, 1)
    torch.testing.assert_close(shown.flatten(), torch.arange(12) / 11)
    assert buffer.by_age(8, 8).shape == (1, 8, 1, 1, 1)
    buffer.write(torch.tensor([0]), torch.full((1, 1, 1, 1), 3.0), torch.tensor([99]))
    assert float(buffer.by_age(3, 4).max()) == 1


def test_a_buffer_larger_than_memory_is_refused_with_a_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "free_memory", lambda: 2 * 3 * 32 * 32 * 4 * 1000)
    assert with_room(1000, (3, 32, 32)).images.shape == (1000, 3, 32, 32)
    with pytest.raises(clf.ConfigError, match=r"method\.buffer_size = 1001 .* set method\.buffer_size=1000 or less"):
        with_room(1001, (3, 32, 32))
    exact = ReplayBuffer(501, (3, 32, 32)).double()
    with pytest.raises(clf.ConfigError, match=r"set method\.buffer_size=500 or less"):
        exact.make_room()
    monkeypatch.setattr(buffer_module, "free_memory", lambda: None)
    with_room(1001, (3, 32, 32))


def test_a_saved_buffer_is_loaded_whatever_memory_and_data_say_now(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = with_room(5, (1, 1, 2))
    saved.write(torch.arange(5), torch.arange(10.0).view(5, 1, 1, 2), torch.arange(5))
    monkeypatch.setattr(buffer_module, "free_memory", lambda: 0)
    other = ReplayBuffer(7, (1, 1, 2))  # of two images more
    assert not other.filled and all(value.numel() == 0 for value in other.state_dict().values())
    other.load_state_dict(saved.state_dict())
    assert other.filled and all(
        torch.equal(value, other.state_dict()[key]) for key, value in saved.state_dict().items()
    )
    assert sorted(other.draw(5, torch.Generator()).tolist()) == list(range(5)) and other.by_age(1, 5).shape[1] == 5
    other.write(torch.tensor([0]), torch.full((1, 1, 1, 2), 9.0), torch.tensor([9]))
    assert float(saved.images.max()) == 9 and int(saved.visits.max()) == 4 and float(saved.images[0].max()) == 1
    other.load_state_dict(ReplayBuffer(7, (1, 1, 2)).state_dict())
    assert not other.filled
    with pytest.raises(RuntimeError, match="size mismatch"):
        ReplayBuffer(5, (1, 2, 2)).load_state_dict(saved.state_dict())


def test_a_device_without_room_is_told_apart_from_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = ReplayBuffer(1000, (3, 32, 32))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 32 * 32 * 4 * 100, 10**9))

    def full(_: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(buffer, "_resize", full)
    with pytest.raises(clf.ConfigError, match=r"of GPU memory are free.*set method\.buffer_size=50 or less"):
        buffer.make_room()


def test_free_memory_is_known_here() -> None:
    free = buffer_module.free_memory()
    assert free is None or free > 2**20
