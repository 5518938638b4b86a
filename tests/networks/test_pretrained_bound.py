"""The bound and the steps of a diffusers model are those of DDPM and Improved DDPM."""

from __future__ import annotations

import diffusers.schedulers.scheduling_ddim as scheduling_ddim
import diffusers.schedulers.scheduling_ddpm as scheduling_ddpm
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import ndm
import ndm.method.bounds
from tests.networks.improved_diffusion import GaussianDiffusion
from tests.networks.pipelines import N, ddpm, pixels, unet

VARIANCES = {"fixed_small": 1, "fixed_large": 1, "learned_range": 2}


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch):
    def put(values: Tensor) -> None:
        monkeypatch.setattr(ndm.method.bounds, "normal_like", lambda x, generator: values.to(x))

    return put


def terms(model: ndm.NDM, x: Tensor, noises: Tensor, put, labels=None) -> Tensor:
    """The terms in bits per dimension: N of the steps, the decoder's first, and the prior's, (N + 1, B)."""
    per_bit = 1 / (x[0].numel() * torch.log(torch.tensor(2.0, dtype=torch.float64)))
    found = []
    for t in range(N):
        put(noises[t])
        times = torch.full((len(x),), (max(t, 1) - 0.5) / (N - 1), dtype=torch.float64)
        with torch.no_grad():
            bound = model.bound(x, N - 1, times=times, labels=labels)
        found.append(bound.diffusion / (N - 1) if t else bound.reconstruction)
    return torch.stack([*found, bound.prior]) * per_bit


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_is_that_of_improved_ddpm(variance: str, clip: bool, approximate: bool, noise) -> None:
    net = unet(heads=VARIANCES[variance]).double()
    scheduler = ddpm(variance_type=variance, clip_sample=clip)
    model = ndm.from_diffusers((net, scheduler))
    model.decoder.approximate = approximate
    x = pixels()
    noises = torch.randn(N, *x.shape, dtype=torch.float64)
    ours = terms(model, x, noises, noise)

    oracle = GaussianDiffusion(scheduler.alphas_cumprod, "epsilon", variance, clip, approximate)
    scaled = x.double() / 127.5 - 1
    with torch.no_grad():
        theirs = [oracle.term(net.eval(), scaled, t, noises[t]) for t in range(N)]
    theirs = torch.stack([*theirs, oracle.prior(scaled)])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.sum(0), theirs.sum(0), rtol=1e-8, atol=0)
    assert (theirs > 1e-4).all()


@pytest.mark.parametrize("predicts", ["v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
def test_the_bound_of_other_predictions_and_betas(predicts: str, betas: str, noise) -> None:
    net = unet(num_class_embeds=4).double()
    scheduler = ddpm(prediction_type=predicts, beta_schedule=betas, clip_sample=False)
    model = ndm.from_diffusers((net, scheduler))
    x, labels = pixels(), torch.tensor([0, 3, 1])
    noises = torch.randn(N, *x.shape, dtype=torch.float64)
    oracle = GaussianDiffusion(scheduler.alphas_cumprod, predicts, "fixed_small", False, False)
    scaled = x.double() / 127.5 - 1
    with torch.no_grad():
        theirs = torch.stack([oracle.term(net.eval(), scaled, t, noises[t], labels) for t in range(N)])
    torch.testing.assert_close(terms(model, x, noises, noise, labels)[:N], theirs, rtol=1e-6, atol=1e-9)


def test_the_bounds_of_all_scales_of_the_pixels_are_the_same() -> None:
    model, x = ndm.from_diffusers((unet(), ddpm())), pixels()

    def bits(data: Tensor) -> Tensor:
        return model.bound(data, N - 1, generator=torch.Generator().manual_seed(0)).bits_per_dim

    integers = bits(x)
    assert torch.equal(bits(x / 127.5 - 1), integers)
    assert torch.equal(bits((2 * x + 1) / 256 - 1), integers)  # the levels of ndm.data
    assert torch.equal(bits(x.byte()), integers)
    with pytest.raises(ValueError, match="do not lie on the decoder's K = 256 levels"):
        bits(x / 255)  # in [0, 1]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", VARIANCES)
def test_an_ancestral_step_is_diffusers(variance: str, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = unet(heads=VARIANCES[variance]).double().eval()
    scheduler = ddpm(variance_type=variance, clip_sample=clip)
    scheduler.set_timesteps(N)
    model = ndm.from_diffusers((net, scheduler))
    z = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for t in (1, 2, 11, N - 1):
        with torch.no_grad():
            output = net(z, t).sample
            kernel = model.kernel(z, model.grid_step(torch.full((2,), t), N - 1, z))
        for factor in (0.0, 1.0):
            drawn = torch.full_like(z, factor)
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, drawn=drawn, **options: drawn)
            theirs = scheduler.step(output, t, z).prev_sample
            # The scheduler computes with its alphas_cumprod in float32.
            torch.testing.assert_close(kernel.sample(drawn), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("clip", [False, True])
def test_a_ddim_step_is_diffusers(eta: float, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = unet().double().eval()
    scheduler = DDIMScheduler(N, 1e-3, 0.3, clip_sample=clip)
    scheduler.set_timesteps(N)
    model = ndm.from_diffusers((net, scheduler))
    z, drawn = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(scheduling_ddim, "randn_tensor", lambda *args, **options: drawn)
    for t in (1, 2, 11, N - 1):
        with torch.no_grad():
            theirs = scheduler.step(net(z, t).sample, t, z, eta, use_clipped_model_output=clip).prev_sample
            step = model.grid_step(torch.full((2,), t), N - 1, z, eta)
            ours = model.kernel(z, step, override=True).sample(drawn)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
