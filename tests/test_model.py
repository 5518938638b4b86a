"""The object that users hold."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import ndm
from ndm.networks import ResidualMLP


def net(**options) -> ResidualMLP:
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def make(**options) -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(), ndm.Neural(net()), ndm.Denoiser(net()), **options)


def total(model: ndm.NDM, x: Tensor, steps: int | None = None) -> Tensor:
    return model.bound(x, steps, generator=torch.Generator().manual_seed(1)).total.detach()


def test_public_names_exist() -> None:
    assert len(set(ndm.__all__)) == len(ndm.__all__)
    for name in ndm.__all__:
        assert getattr(ndm, name).__doc__, name


def test_importing_ndm_is_light() -> None:
    heavy = [
        "diffusers",
        "huggingface_hub",
        "jsonargparse",
        "lightning",
        "matplotlib",
        "pandas",
        "sklearn",
        "torchmetrics",
    ]
    code = f"import sys, ndm; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_defaults_are_the_papers() -> None:
    model = make()
    assert isinstance(model.decoder, ndm.GaussianDecoder)
    assert isinstance(model.reverse_variance, ndm.PosteriorVariance)
    assert model.volatility(torch.zeros(3)).tolist() == [1, 1, 1]
    assert model.standardize is None


@pytest.mark.parametrize(
    ("name", "cls"),
    [("posterior", ndm.PosteriorVariance), ("learned", ndm.LearnedVariance), ("predicted", ndm.PredictedVariance)],
)
def test_reverse_variances_by_name(name: str, cls: type) -> None:
    assert isinstance(make(reverse_variance=name).reverse_variance, cls)


def test_a_copy_is_independent_and_complete() -> None:
    x = torch.randn(20, 2)
    model = make(reverse_variance="learned", volatility=ndm.LearnedVolatility()).calibrate(x, 4, "full")
    other = copy.deepcopy(model)
    before = [total(model, x, steps) for steps in (None, 4, 6)]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    model.uncalibrate()
    for steps, value in zip((None, 4, 6), before, strict=True):
        assert torch.equal(total(other, x, steps), value)
        assert not torch.equal(total(model, x, steps), value)
    assert list(other.calibrations) == ["4"]
    assert other.config()["init_args"]["calibrations"].keys() == {"4"}
    assert other.transform(x).transform is other.transform  # no link back to the original


def test_calibration_lowers_the_bound_for_its_number_of_steps_only() -> None:
    x, model = torch.randn(500, 2), make()
    before = {steps: total(model, x, steps) for steps in (5, 6, None)}
    assert model.calibrate([x], 5) is model
    assert total(model, x, 5).mean() < before[5].mean() - 1
    assert torch.equal(total(model, x, 6), before[6])
    assert torch.equal(total(model, x), before[None])
    isotropic = total(model, x, 5).mean()
    model.calibrate([x], 5, "full")  # replaces the other
    assert list(model.calibrations) == ["5"]
    assert model.calibrations["5"].covariance == "full"
    assert total(model, x, 5).mean() < isotropic + 0.05
    model.uncalibrate(5)
    assert torch.equal(total(model, x, 5), before[5])


def test_calibration_takes_a_loaders_batches() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(30, 2))
    model = make().calibrate(torch.utils.data.DataLoader(data, batch_size=7), 3)
    assert model.calibrations["3"].steps == 3


def test_a_model_moves_between_precisions() -> None:
    model = make().calibrate(torch.randn(20, 2), 4).double()
    assert total(model, torch.randn(3, 2).double(), 4).dtype == torch.float64


def test_single_and_double_precision_agree() -> None:
    """At VDM's end points, where differences are weighed by e^{-gamma} = 6e5."""
    x = torch.randn(400, 2)
    times = (torch.arange(400) + 0.5) / 400
    model = make()
    noise = torch.randn(400, 2)
    original = ndm.method.bounds.normal_like
    try:
        ndm.method.bounds.normal_like = lambda x, generator: noise.to(x)
        for steps in (None, 1, 10, 1000):
            single = model.float().bound(x, steps, times=times).diffusion.detach()
            double = model.double().bound(x.double(), steps, times=times).diffusion.detach()
            torch.testing.assert_close(single.double(), double, rtol=5e-3, atol=1e-3)
            assert single.mean().item() == pytest.approx(double.mean().item(), rel=2e-4)
    finally:
        ndm.method.bounds.normal_like = original


def test_training_lowers_the_bound() -> None:
    x = 0.3 * torch.randn(256, 2) + torch.tensor([1.0, -1.0])
    model = make(reverse_variance="learned", volatility=ndm.LearnedVolatility())
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    first = total(model, x, 10).mean()
    for _ in range(60):
        optimiser.zero_grad()
        model.bound(x, 10).total.mean().backward()
        optimiser.step()
    assert total(model, x, 10).mean() < 0.5 * first


# ---- what a model knows, and what it is asked


def test_a_model_knows_its_shape_device_classes_and_ode() -> None:
    plain = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1)))
    assert (plain.shape, plain.num_classes, plain.has_ode) == (None, 0, True)
    assert plain.device == torch.device("cpu")
    direct = ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1, classes=3))
    other = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), direct, standardize=ndm.Standardize([0.0, 1.0], [1.0, 2.0]))
    assert (other.shape, other.num_classes, other.has_ode) == ((2,), 3, False)
    assert ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(lambda z, level: z)).num_classes == 0


def test_a_model_samples_and_has_a_log_density() -> None:
    net = ResidualMLP(2, hidden=8, depth=1)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net)).eval()
    x = model.sample(3, (2,), steps=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, ndm.sample(model, 3, (2,), steps=4, generator=torch.Generator().manual_seed(0)))
    found = model.log_prob(x.numpy(), tolerance=0.1)
    torch.testing.assert_close(found, ndm.log_likelihood(model, x, tolerance=0.1).log_prob)
    with pytest.raises(ValueError, match="shape of an example is unknown"):
        model.sample(3)
    model.standardize = ndm.Standardize([0.0, 1.0], [1.0, 2.0])
    assert model.sample(3, steps=2).shape == (3, 2)
