"""Decoders against softmaxes written out, and against sampling."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ndm
from ndm.method.schedules import NoiseLevel

LEVELS = (2, 17, 256)


def levels(k: int) -> np.ndarray:
    return 2 * (np.arange(k) + 0.5) / k - 1


def f64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def level_at(gamma: torch.Tensor) -> NoiseLevel:
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    return NoiseLevel(alpha, sigma, gamma, torch.ones_like(gamma), torch.ones_like(gamma))


# ---- K levels


def test_three_levels_by_enumeration() -> None:
    decoder, values = ndm.DiscretizedDecoder(3), [-2 / 3, 0.0, 2 / 3]
    for gamma in (-2.5, -1.5, 0.3):
        for z in (-2.0, -0.66, -0.1, 0.0, 0.34, 3.0):  # z_0 / alpha_0
            weights = [math.exp(-((z - value) ** 2) / (2 * math.exp(gamma))) for value in values]
            for value, weight in zip(values, weights, strict=True):
                x, gap = torch.tensor([[value]], dtype=torch.float64), torch.tensor([[z - value]], dtype=torch.float64)
                nll = decoder.nll(x, gap, torch.tensor([gamma], dtype=torch.float64)).item()
                assert nll == pytest.approx(-math.log(weight / sum(weights)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("gamma_0", [-13.3, -10.0, -6.0, -2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_that_are_left_out_are_not_missed(gamma_0: float, dtype: torch.dtype) -> None:
    decoder = ndm.DiscretizedDecoder(256)
    torch.manual_seed(0)
    values = torch.randint(256, (40, 30)).clamp(0, 255)
    values[:10] = torch.tensor([0, 255]).repeat(15)  # at the ends the window cannot be centred
    x = decoder.encode(values, dtype)
    scale = torch.logspace(-3, 0.5, 40, dtype=dtype)[:, None]  # as far off as the other end of the levels
    gap = (scale * torch.randn(40, 30, dtype=dtype)).requires_grad_()
    gamma = torch.full((40,), gamma_0, dtype=dtype, requires_grad=True)
    found = decoder.nll(x, gap, gamma)
    gradients = torch.autograd.grad(found.sum(), (gap, gamma))

    wide, deep = gap.detach().double().requires_grad_(), gamma.detach().double().requires_grad_()
    levels = (2 * torch.arange(256, dtype=torch.float64) + 1) / 256 - 1
    logits = -(((x.double() + wide)[..., None] - levels) ** 2) / (2 * deep[:, None, None].exp())
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), values.flatten(), reduction="none").reshape(40, 30)
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found.double(), exact.sum(1), rtol=rtol, atol=rtol)
    if dtype == torch.float32:
        return  # far off, where logits are of the order of 1e6, single precision cannot tell neighbours apart
    for ours, theirs in zip(gradients, torch.autograd.grad(exact.sum(), (wide, deep)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())


@pytest.mark.parametrize("k", LEVELS)
@pytest.mark.parametrize("gamma", [-13.3, -6.0, 1.0])
def test_nll_is_the_softmax_and_sums_to_one(k: int, gamma: float) -> None:
    decoder, z = ndm.DiscretizedDecoder(k), np.linspace(-1.3, 1.3, 23)
    expected = log_softmax(-((z[:, None] - levels(k)) ** 2) / (2 * math.exp(gamma)), axis=1)  # (23, K)
    x = torch.from_numpy(levels(k)).expand(23, k).reshape(-1, 1)
    gap = torch.from_numpy(z)[:, None].expand(23, k).reshape(-1, 1) - x
    nll = decoder.nll(x, gap, torch.full((23 * k,), gamma, dtype=torch.float64)).reshape(23, k)
    np.testing.assert_allclose(nll, -expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(torch.exp(-nll).sum(1), 1, rtol=1e-9)


def test_dimensions_are_independent_and_examples_have_their_own_level() -> None:
    decoder = ndm.DiscretizedDecoder(5)
    index = torch.randint(5, (4, 2, 3))
    x, gap = torch.from_numpy(levels(5))[index], torch.randn(4, 2, 3).double() * 0.3
    gamma = f64([-5.0, -3.0, -1.0, 0.0])
    logits = -(((x + gap)[..., None] - torch.from_numpy(levels(5))) ** 2) / (2 * gamma.exp()).reshape(-1, 1, 1, 1)
    expected = -logits.log_softmax(-1).gather(-1, index[..., None])[..., 0].sum((1, 2))
    torch.testing.assert_close(decoder.nll(x, gap, gamma), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", LEVELS)
def test_single_precision_near_the_data(k: int) -> None:
    decoder, gamma = ndm.DiscretizedDecoder(k), torch.full((2000,), -13.3)
    x = decoder.encode(torch.randint(k, (2000, 1)))
    gap = math.exp(-13.3 / 2) * torch.randn(2000, 1) * 3
    nll = decoder.nll(x, gap, gamma)
    exact = decoder.nll(torch.from_numpy(levels(k))[decoder.nearest(x)], gap.double(), gamma.double())
    torch.testing.assert_close(nll.double(), exact, rtol=2e-3, atol=1e-5)
    assert k < 256 or exact.max() > 0.1


def test_expected_nll_is_that_of_a_sample_of_z_0() -> None:
    decoder, gamma = ndm.DiscretizedDecoder(17), f64([-3.0, -2.0, -5.0])
    x = torch.from_numpy(levels(17))[torch.randint(17, (3, 4))]
    displacement, noise = torch.randn(2, 3, 4).double()
    z_over_alpha = x + displacement + (gamma / 2).exp()[:, None] * noise
    expected = decoder.nll(x, z_over_alpha - x, gamma)
    torch.testing.assert_close(decoder.expected_nll(x, displacement, noise, level_at(gamma)), expected)


@pytest.mark.parametrize("chunk", [1, 7, 60, 61])
def test_chunks_change_neither_value_nor_gradient(chunk: int) -> None:
    x, gap = torch.from_numpy(levels(9))[torch.randint(9, (5, 3, 4))], torch.randn(5, 3, 4).double() * 0.2
    gamma, weight = torch.linspace(-5, 0, 5).double(), torch.randn(5).double()
    results = []
    for decoder in (ndm.DiscretizedDecoder(9, chunk=10**9), ndm.DiscretizedDecoder(9, chunk=chunk)):
        inputs = [a.clone().requires_grad_() for a in (gap, gamma)]
        nll = decoder.nll(x, *inputs)
        results.append([nll, *torch.autograd.grad((nll * weight).sum(), inputs)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-12, atol=1e-12)
    assert all(r.abs().max() > 1e-3 for r in results[0])


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes alive at any time among the tensors made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


def peak_of_training(batch: int, chunk: int) -> int:
    decoder = ndm.DiscretizedDecoder(256, chunk=chunk)
    x = decoder.encode(torch.randint(256, (batch, 3, 16, 16)))
    gap = (1e-2 * torch.randn_like(x)).requires_grad_()
    with PeakMemory() as memory:
        decoder.nll(x, gap, torch.full((batch,), -9.0)).sum().backward()
    assert gap.grad.abs().max() > 0
    return memory.peak


def test_memory_does_not_grow_with_the_batch() -> None:
    logits = 4 * 1024 * 256  # bytes of the logits of one chunk of 1024
    small, large, whole = peak_of_training(16, 1024), peak_of_training(64, 1024), peak_of_training(64, 10**9)
    assert small < 12 * logits
    assert large < small + 2 * logits  # what is proportional to the batch, without the factor of the levels
    assert whole > 3 * large  # the measurement can tell


@pytest.mark.parametrize("k", LEVELS)
def test_encode_decode_and_check(k: int) -> None:
    decoder, integers = ndm.DiscretizedDecoder(k), torch.arange(k, dtype=torch.uint8)[:, None]
    x = decoder.encode(integers)
    np.testing.assert_allclose(x[:, 0], levels(k), atol=1e-7)
    assert decoder.encode(integers, torch.float64).dtype == torch.float64
    np.testing.assert_allclose(decoder.encode(integers, torch.float64)[:, 0], levels(k), rtol=0, atol=1e-16)
    decoder.check(x)
    assert torch.equal(decoder.nearest(x), integers.long())
    level = level_at(torch.full((k,), -6.0))
    z = level.alpha[:, None] * (x + 0.9 / k * torch.linspace(-1, 1, k)[:, None])
    assert torch.equal(decoder.decode(z, level), x)
    assert torch.equal(decoder.decode(10 * torch.sign(z), level)[[0, -1]], x[[0, -1]])


@pytest.mark.parametrize("value", [-1, 17, 300])
def test_integers_off_the_levels_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="K = 17"):
        ndm.DiscretizedDecoder(17).encode(torch.tensor([[3], [value]]))


@pytest.mark.parametrize("value", [0.0, 0.06, 1.0, 3.0])
def test_numbers_off_the_levels_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="do not lie on the decoder's K = 16 levels"):
        ndm.DiscretizedDecoder(16).check(torch.tensor([[1 / 16], [value]]))


@pytest.mark.parametrize("decoder", [ndm.GaussianDecoder(), ndm.DiscretizedDecoder(4)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(decoder, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        decoder.check(torch.tensor([[0.25], [value]]))


def test_a_single_level_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 levels"):
        ndm.DiscretizedDecoder(1)


# ---- continuous data


def test_gaussian_nll_is_the_normal_density() -> None:
    gamma = f64([-4.0, 0.5])
    x, gap = torch.randn(2, 2, 3, 2).double()
    density = torch.distributions.Normal(x + gap, (gamma / 2).exp().reshape(-1, 1, 1))
    expected = -density.log_prob(x).sum((1, 2))
    torch.testing.assert_close(ndm.GaussianDecoder().nll(x, gap, gamma), expected, rtol=1e-12, atol=1e-12)


def test_gaussian_closed_form_equals_sampling() -> None:
    decoder, n = ndm.GaussianDecoder(), 200_000
    gamma, x, displacement = f64([-3.0]), torch.randn(1, 3).double(), 0.1 * torch.randn(1, 3).double()
    closed = decoder.expected_nll(x, displacement, torch.full_like(x, math.nan), level_at(gamma))
    gap = displacement + (gamma / 2).exp() * torch.randn(n, 3).double()
    sampled = decoder.nll(x.expand(n, 3), gap, gamma.expand(n))
    assert closed.item() == pytest.approx(sampled.mean().item(), abs=4 * sampled.std().item() / n**0.5)


def test_gaussian_decodes_the_mean_and_refuses_integers() -> None:
    level, z = level_at(f64([-3.0, 1.0])), torch.randn(2, 3).double()
    torch.testing.assert_close(ndm.GaussianDecoder().decode(z, level), z / level.alpha[:, None])
    with pytest.raises(ValueError, match="continuous data and got integers"):
        ndm.GaussianDecoder().encode(torch.ones(2, dtype=torch.long))


# ---- levels with weights


def weighted(k: int, seed: int = 0) -> tuple[ndm.WeightedDecoder, np.ndarray]:
    decoder, weights = ndm.WeightedDecoder(k), 3 * np.random.default_rng(seed).standard_normal(k)
    decoder.double().log_weights.data.copy_(torch.from_numpy(weights))
    return decoder, weights


@pytest.mark.parametrize("k", LEVELS)
@pytest.mark.parametrize("gamma", [-13.3, -8.0, 1.0])
def test_weights_are_added_to_the_logits(k: int, gamma: float) -> None:
    (decoder, weights), z = weighted(k), np.linspace(-1.3, 1.3, 23)
    expected = log_softmax(weights - ((z[:, None] - levels(k)) ** 2) / (2 * math.exp(gamma)), axis=1)
    x = torch.from_numpy(levels(k)).expand(23, k).reshape(-1, 1)
    gap = torch.from_numpy(z)[:, None].expand(23, k).reshape(-1, 1) - x
    nll = decoder.nll(x, gap, torch.full((23 * k,), gamma, dtype=torch.float64)).reshape(23, k)
    np.testing.assert_allclose(nll.detach(), -expected, rtol=1e-9, atol=1e-9)


def test_decoding_takes_the_likeliest_level() -> None:
    decoder, weights = weighted(256)
    z, gamma = np.linspace(-1.1, 1.1, 500), -9.0
    expected = np.argmax(weights - ((z[:, None] - levels(256)) ** 2) / (2 * math.exp(gamma)), axis=1)
    level = level_at(torch.full((500,), gamma, dtype=torch.float64))
    found = decoder.decode(torch.from_numpy(z)[:, None] * level.alpha[:, None], level)
    np.testing.assert_allclose(found[:, 0], levels(256)[expected])
    assert (expected != decoder.nearest(torch.from_numpy(z)).numpy()).any()


def test_weights_are_learned_to_be_frequencies() -> None:
    """The best weights of a pixel whose z_0 is its own level and noise are those of Bayes' rule: the frequencies."""
    torch.manual_seed(0)
    frequencies = torch.tensor([0.6, 0.1, 0.25, 0.05])
    decoder, level = ndm.WeightedDecoder(4), level_at(torch.full((4000,), -0.5))
    x = decoder.encode(torch.multinomial(frequencies, 4000, replacement=True)[:, None])
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        decoder.expected_nll(x, torch.zeros_like(x), torch.randn_like(x), level).mean().backward()
        optimizer.step()
    torch.testing.assert_close(decoder.log_weights.detach().softmax(0), frequencies, rtol=0.1, atol=0.02)


def test_equal_weights_are_no_weights() -> None:
    x, gap = torch.from_numpy(levels(256))[torch.randint(256, (5, 30))], torch.randn(5, 30).double() * 0.1
    gamma = torch.linspace(-12, -6, 5).double()
    torch.testing.assert_close(
        ndm.WeightedDecoder(256).nll(x, gap, gamma), ndm.DiscretizedDecoder(256).nll(x, gap, gamma)
    )
