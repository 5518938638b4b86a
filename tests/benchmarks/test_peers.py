"""The comparison with other implementations: what stands for a peer here is what the peer is, and equal is equal."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndm.data import Checkerboard

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_command", BENCHMARKS / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the method's other implementation


class Peer(nn.Module):
    """A model with the peer's names: a network of the noise, F by whole times, squares of alpha."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.alphas_cumprod = torch.linspace(0.999, 0.05, steps + 1)
        self.steps = steps
        self.out, self.bend = nn.Linear(3, 2), nn.Linear(3, 2)

    def model(self, z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        return self.out(torch.cat([z, t[:, None] / self.steps], 1)).sin()

    def F(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: N802
        u = t[:, None] / self.steps
        return (1 - u) * x + u * self.bend(torch.cat([x, u], 1)).tanh()


def test_a_peers_bound_is_that_of_its_own_steps() -> None:
    """Against the formulas of DDPM's posterior, written out for one step of every example."""
    from peers.checkerboard import as_ours

    steps, n = 6, 60
    peer = Peer(steps).double()
    peer.alphas_cumprod = peer.alphas_cumprod.double()
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.arange(n) % steps + 1
    times = (t - 0.5).double() / steps
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        found = as_ours(peer).bound(x, steps, times=times, generator=generator)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        at, a_s = (peer.alphas_cumprod[i][:, None] for i in (t, t - 1))
        z = at.sqrt() * peer.F(x, t) + (1 - at).sqrt() * noise
        x_hat = (z - (1 - at).sqrt() * peer.model(z, t)) / at.sqrt()
        # beta_t = 1 - at / a_s; the posterior's variance and mean are those of DDPM's equation 7, F for x.
        variance = (1 - a_s) / (1 - at) * (1 - at / a_s)
        c = (at / a_s).sqrt() * (1 - a_s) / (1 - at)

        def mean(of: Tensor) -> Tensor:
            return a_s.sqrt() * peer.F(of, t - 1) - c * at.sqrt() * peer.F(of, t)

        diffusion = steps * ((mean(x) - mean(x_hat)) ** 2 / (2 * variance)).sum(1)
        last = peer.alphas_cumprod[-1]
        f_1 = peer.F(x, torch.full((n,), steps))
        prior = (1 - last + last * f_1**2 - 1 - (1 - last).log()).sum(1) / 2
    torch.testing.assert_close(found.diffusion, diffusion, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.prior, prior, rtol=1e-6, atol=1e-8)
    first = peer.alphas_cumprod[0]
    constant = math.log(2 * math.pi * math.e * (1 - first) / first)  # two dimensions
    torch.testing.assert_close(found.reconstruction, torch.full((n,), constant, dtype=torch.float64))


def test_the_board_is_found_from_its_examples() -> None:
    from peers.checkerboard import Board

    raw = Checkerboard().sample(80_000, torch.Generator().manual_seed(0)) + 2
    mean, scale = raw.mean().item(), raw.std().item()
    board = Board.of((raw - mean) / scale)
    assert board.mean == pytest.approx(mean, abs=1e-3)
    assert board.scale == pytest.approx(scale, rel=1e-3)
    fresh = board.fresh(20_000, seed=1)
    assert board.off(fresh) < 1e-3
    aside = torch.tensor([1 / scale, 0.0])  # where there was a dark square there is a light one
    assert board.off(fresh + aside) > 0.999
    # The density is uniform: the entropy is the logarithm of the area of what is not off it.
    anywhere = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(2)) * 8 - 4
    assert board.entropy == pytest.approx(math.log(64 * (1 - board.off(anywhere))), abs=0.03)


def test_ours_with_the_peers_schedule() -> None:
    from peers.checkerboard import T, ours

    schedule = ours("Identity, its schedule", "default", 20_000).schedule
    assert schedule.end_points() == pytest.approx((math.log(1e-4 / 0.9999), math.log(0.9999 / 1e-4)))
    level = schedule(torch.tensor([1 / T, 0.5]))
    # cos^2 between the two ends: 0.99716 is what the peer prints for its first step.
    torch.testing.assert_close(level.alpha.square(), torch.tensor([0.99716, 0.5]), rtol=0, atol=1e-5)


# ---- the notebook


def test_of_a_notebook_only_definitions_are_run(tmp_path: Path) -> None:
    from peers.gaussians import definitions

    code = "import math\ndef half(x):\n    return x / TWO()\nclass TWO(int):\n    def __new__(cls):\n        return 2\n"
    cells = [
        {"cell_type": "markdown", "source": ["not (python"]},
        {"cell_type": "code", "source": code.splitlines(True)},
        {"cell_type": "code", "source": ["raise RuntimeError('run')\n", "x = 1"]},
    ]
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    found = definitions(path)
    assert found.half(3) == 1.5
    assert not hasattr(found, "x")
    with pytest.raises(FileNotFoundError, match="checkout"):
        definitions(tmp_path / "two.ipynb")
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a Jupyter notebook"):
        definitions(path)


@pytest.mark.parametrize("rate", [-0.7, 0.4])
def test_the_likelihood_of_a_linear_ode(rate: float) -> None:
    """dz/dt = r(t) z with r = 2 rate t, so that z_1 = e^rate z."""
    from peers.gaussians import ode_likelihood

    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ode_likelihood(lambda y, t: 2 * rate * t * y, z, steps=20)
    expected = torch.distributions.Normal(0, 1).log_prob(math.exp(rate) * z).sum(1) + 3 * rate
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_notebooks_bound_has_its_times_evenly_and_the_reconstruction() -> None:
    from peers.gaussians import peer_bound

    def peer(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x), 1)
        return 3 * t[:, 0] ** 2  # whose integral is 1

    x = torch.zeros(500, 2)
    before = torch.get_rng_state()
    found = peer_bound(peer, x, times=20)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    expected = 1 + torch.distributions.Normal(0.0, 0.01).entropy().item() * 2
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=0.1)
    assert found.mean().item() == pytest.approx(expected, abs=1e-3)


def test_the_models_have_as_many_parameters() -> None:
    from bench import parameters
    from peers import checkerboard, gaussians

    for name in ("Identity", "Neural", "Separable"):
        assert parameters(gaussians.build_ours(name, 38_535)) == pytest.approx(38_535, rel=0.02)
        assert parameters(checkerboard.ours(name, "default", 198_148)) == pytest.approx(198_148, rel=0.02)


# ---- the race


class Clock:
    """A training whose steps are counted."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.spent: list[float] = []
        self.noise: list[float] = []

    def step(self, batch: Tensor, spent: float) -> None:
        self.spent.append(spent)
        self.noise.append(torch.rand(()).item())
        torch.linspace(0, 1, 200_000).exp()


def test_all_get_equal_seconds_and_random_numbers_of_their_own() -> None:
    from peers import racing

    made = [racing.Contestant(name, Clock, itertools.repeat(torch.zeros(1)), 5) for name in "ab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "TURN", 0.02)
        racing.race(made, 0.1)
    for one in made:
        assert 0.1 <= one.seconds < 0.15
        assert one.steps == len(one.training.spent) > 3
        assert one.training.spent == sorted(one.training.spent)
        assert one.training.spent[-1] < 1
        assert not one.training.model.training
    # The other's turns have not moved one's random numbers.
    torch.manual_seed(5)
    nn.Linear(1, 1)
    few = min(made[0].steps, made[1].steps)
    expected = [torch.rand(()).item() for _ in range(few)]
    assert made[0].training.noise[:few] == made[1].training.noise[:few] == expected


def test_batches_are_epochs_and_draws_are_the_seeds() -> None:
    from peers.racing import draws, epochs

    first = list(itertools.islice(epochs(torch.arange(10), 4, seed=1), 4))
    assert all(len(set(torch.cat(first[i : i + 2]).tolist())) == 8 for i in (0, 2))
    again = list(itertools.islice(epochs(torch.arange(10), 4, seed=1), 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    drawn, state = draws(torch.randn, 3, seed=1), torch.get_rng_state()
    one, two = next(drawn), next(drawn)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert torch.equal(one, next(draws(torch.randn, 3, seed=1)))
    assert not torch.equal(one, two)


# ---- the samplers


def small() -> nn.Module:
    from ndm.networks import ResidualMLP

    torch.manual_seed(0)
    return ResidualMLP(2, hidden=16, depth=1, zero_init=False).eval()


def test_diffusers_takes_the_same_steps() -> None:
    pytest.importorskip("diffusers")
    from peers.samplers import apart, diffusers

    assert apart(small(), diffusers, "ddim", (20, 2), 7) < 1e-12
    # The figure can tell samplers apart: diffusers' ancestral one adds no noise at its last step.
    assert apart(small(), diffusers, "ancestral", (20, 2), 7) > 1e-4


class _Steps:
    """What azula's samplers are, in few words."""

    noisy = False

    def __init__(self, denoiser: Any, steps: int, silent: bool, dtype: torch.dtype) -> None:
        self.denoiser, self.times = denoiser, torch.linspace(1, 0, steps + 1, dtype=dtype)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        for t, s in itertools.pairwise(self.times):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = self.denoiser.schedule(t), self.denoiser.schedule(s)
            x_hat = self.denoiser(x, t).mean
            eps_hat = (x - alpha_t * x_hat) / sigma_t
            new = (sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2) if self.noisy else 0 * t
            x = alpha_s * x_hat + (sigma_s**2 - new).sqrt() * eps_hat
            if self.noisy:
                x = x + new.sqrt() * torch.randn_like(x)
        return x


class _NoisySteps(_Steps):
    noisy = True


@pytest.mark.parametrize("method", ["ddim", "ancestral"])
def test_azulas_denoiser_and_schedule_are_ours(method: str) -> None:
    from peers.samplers import apart, azula

    code = SimpleNamespace(
        noise=SimpleNamespace(Schedule=object),
        denoise=SimpleNamespace(Denoiser=nn.Module, DiracPosterior=SimpleNamespace),
        sample=SimpleNamespace(DDIMSampler=_Steps, DDPMSampler=_NoisySteps),
    )
    assert apart(small(), azula(code), method, (20, 2), 7) < 1e-12


def test_the_network_alone_is_called_once_a_step() -> None:
    from peers.samplers import network

    levels = []

    def net(z: Tensor, u: Tensor) -> Tensor:
        levels.append(u[0].item())
        return z

    network(net, "ddim", 4)(torch.zeros(3, 2))  # type: ignore[arg-type]
    assert levels == [1.0, 0.75, 0.5, 0.25]


# ---- the command


def test_a_missing_peer_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "peers.json"
    for part, said in (("ndm", "ndm.py"), ("nfdm", "nfdm_from_scratch.ipynb"), ("samplers", "azula/sample.py")):
        assert command().main([part, "--peer", str(tmp_path), "--results", str(results)]) == 2
        assert f"There is no {said}" in capsys.readouterr().err
    assert not results.exists()


def test_results_of_other_parts_and_seeds_stay(tmp_path: Path) -> None:
    peers = command()
    path = tmp_path / "peers.json"

    def at(*seeds: int, seconds: float = 1.0, part: str = "nfdm") -> argparse.Namespace:
        return argparse.Namespace(part=part, peer=tmp_path, results=path, seeds=list(seeds), seconds=seconds)

    peers.record(at(0, part="ndm"), [{"seed": 0}])
    peers.record(at(0, 1), [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}])
    assert peers.earlier(at(1, 2)) == [{"seed": 0, "x": 1}]
    assert peers.earlier(at(2, seconds=2.0)) == []  # other settings do not stand beside these
    assert set(json.loads(path.read_text())) == {"ndm", "nfdm"}
    assert str(tmp_path) not in path.read_text()


def test_figures_over_seeds() -> None:
    from peers.racing import over_seeds

    found: list[dict[str, Any]] = [{"model": "a", "x": x, "n": 12_345} for x in (1.0, 2.0, 3.0)]
    found += [{"model": "b", "x": 7.25}, {"model": "c", "x": 100.0}, {"model": "c", "x": 300.0}]
    assert over_seeds(found, {"model": "a"}, "x") == "2.00 ± 0.58"
    assert over_seeds(found, {"model": "a"}, "n") == "12,345"
    assert over_seeds(found, {"model": "b"}, "x") == "7.25"  # one seed has no error
    assert over_seeds(found, {"model": "b"}, "n") == ""
    assert over_seeds(found, {"model": "c"}, "x") == "200 ± 100"


def test_ours_is_trained_and_averaged() -> None:
    """A line through the origin: the averaged weights come to the least squares' solution."""
    from peers.racing import Ours

    torch.manual_seed(0)
    line = nn.Linear(1, 1, bias=False)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 2 * batch).square().mean()

    training = Ours(line, loss, rate=0.05)
    start = training.model.weight.item()
    for i in range(1500):
        training.step(torch.randn(16, 1), i / 1500)
    assert training.model.weight.item() == pytest.approx(2, abs=0.01)
    assert training.model is not line
    assert start != 2
    assert training.optimizer.param_groups[0]["lr"] < 1e-4
