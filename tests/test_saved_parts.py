"""What a model computes with is saved with it: the bound and the samples of every part come back to the last bit."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.networks
from ndm.method.mixed_denoiser import outputs_for
from ndm.method.parts import Part
from ndm.method.volatility import ConstantVolatility
from ndm.networks import ConvNet, DiffusersUNet, ImageTransformer, LevelTable, ResidualMLP, UNet
from ndm.storage.checkpoints import CHECKSUMS, CONFIG


class Rising(Part):
    """A factor of the data that is trained."""

    def __init__(self, start: float = 0.3) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(start))

    def forward(self, gamma: Tensor) -> Tensor:
        return 1 + self.factor * torch.sigmoid(gamma)


class Bare(Part):
    """A denoiser that is called with a noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return self.layer(z) * level.alpha[:, None]


def net(**options) -> ResidualMLP:
    return ResidualMLP(4, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def points(**parts) -> tuple[ndm.NDM, Tensor]:
    parts = {"schedule": ndm.LinearSchedule(-9.0, 4.0), "transform": ndm.Identity()} | parts
    denoiser = parts.pop("denoiser", None) or ndm.Denoiser(net())
    levels = isinstance(parts.get("decoder"), (ndm.DiscretizedDecoder, ndm.DenoisedDecoder))
    return ndm.NDM(denoiser=denoiser, **parts), torch.randint(16, (12, 4)) if levels else torch.randn(12, 4)


def images(network: nn.Module, transform: ndm.Transform | None = None, **options) -> tuple[ndm.NDM, Tensor]:
    parts = ndm.LinearSchedule(-9.0, 4.0), transform or ndm.Identity(), ndm.Denoiser(network)
    model = ndm.NDM(*parts, **options)
    return model, torch.randn(6, 1, 4, 4)


def calibrated(covariance: str, **options) -> tuple[ndm.NDM, Tensor]:
    model, x = points(schedule=ndm.LearnedSchedule(-9.0, 4.0, knots=3))
    return model.calibrate(x, 5, covariance, **options), x


def calibrated_images() -> tuple[ndm.NDM, Tensor]:
    model, x = images(ConvNet(1, width=4, embedding=8, zero_init=False))
    return model.calibrate(x, 5, "frequency"), x


def mixture() -> ndm.MixtureBase:
    root = torch.randn(2, 4, 4)
    return ndm.MixtureBase(4, 2).set(torch.tensor([0.3, 0.7]), torch.randn(2, 4), root @ root.mT)


def mixed(based: bool = False) -> tuple[ndm.NDM, Tensor]:
    columns = [
        {"name": "a", "kind": "categorical", "levels": ["x", "y", "z"], "counts": [5, 4, 3, 1], "other": True,
         "rest": None, "storage": "text"},
        {"name": "b", "counts": [2, 3, 9], "levels": [0.0], "missing": True, "map": {"power": 0.5, "scale": 2.0}},
        {"name": "c", "kind": "whole", "counts": [9], "rest": "grid", "step": 0.5, "low": 0.0, "high": 9.0},
    ]  # fmt: skip
    encoding = ndm.TableEncoding(columns)
    layouts, (d,) = encoding.layouts(), encoding.latent_shape
    network = ResidualMLP(d, 8, 1, embedding=8, zero_init=False, outputs=outputs_for(layouts), context=6)
    denoiser = ndm.MixedDenoiser(network, layouts, conditionals="any")
    if based:
        base = ndm.TableMixtureBase([len(c["counts"]) for c in columns], [False, True, True], [True, False, False], 2)
        covariances = (root := torch.randn(2, 2, 2)) @ root.mT + torch.eye(2)
        atoms = [torch.rand(1, 4), torch.rand(2, 3), torch.ones(2, 1)]
        base.set(torch.tensor([0.3, 0.7]), [a / a.sum(1, keepdim=True) for a in atoms], torch.randn(2, 2), covariances)
        network = ResidualMLP(d, 8, 1, embedding=8, zero_init=False, outputs=outputs_for(layouts))
        denoiser = ndm.MixedDenoiser(network, layouts, base=base)
    model = ndm.NDM(
        ndm.LinearSchedule(-9.0, 4.0), ndm.Identity(), denoiser, ndm.MixedDecoder(layouts), standardize=encoding
    )
    a, b, c = torch.randint(4, (12,)), torch.randn(12).double(), torch.randint(19, (12,)) / 2
    b[:3], b[3:5] = 0.0, torch.nan
    return model, torch.stack([a.double(), b, c.double()], 1)


SCHEDULES = {
    "linear": lambda: ndm.LinearSchedule(-8.1, 3.3),
    "cosine": lambda: ndm.CosineSchedule(0.01, -8.1, 3.3),
    "ddpm": lambda: ndm.DDPMSchedule(1e-3, 0.3, 30, -8.1),
    "ot": lambda: ndm.OTSchedule(-8.1, 3.3),
    "vp": lambda: ndm.VPSchedule(0.2, 15.0, -8.1),
    "learned": lambda: ndm.LearnedSchedule(-8.1, 3.3, knots=3),
    "learned ends": lambda: ndm.LearnedSchedule(-8.1, 3.3, learn_endpoints=True, minimize_variance=False),
}
RANGED = {
    "neural": lambda: {"transform": ndm.Neural(net())},
    "separable": lambda: {"transform": ndm.Separable(net(heads=3, level=False), 3, "legendre", "free")},
    "denoiser": lambda: {"denoiser": ndm.Denoiser(net(), "x")},
    "direct": lambda: {"denoiser": ndm.DirectDenoiser(net(heads=2), "eps", ode=True)},
    "learned variance": lambda: {"reverse_variance": ndm.LearnedVariance(5)},
    "learned volatility": lambda: {"volatility": ndm.LearnedVolatility(3)},
    "learned noise": lambda: {"noise": ndm.LearnedNoise(net(heads=2, level=False), 2, "bumps", 0.3)},
    "noise per dimension": lambda: {"noise": ndm.DimensionNoise((4,), 3, limit=0.7)},
}
#: A network of diffusers.
SMALL = {
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "add_attention": False,
}
MODELS = {
    **{f"schedule {k}": lambda make=make: points(schedule=make()) for k, make in SCHEDULES.items()},
    **{k: lambda make=make: points(**make()) for k, make in RANGED.items()},
    **{
        f"gate {g}": lambda g=g: points(transform=ndm.Neural(net(), gate=g))
        for g in ("sigma2", "sigma", "anchored", "free")
    },
    **{
        f"basis {b}": lambda b=b: points(transform=ndm.Separable(net(heads=2, level=False), 2, b))
        for b in ("cosine", "legendre", "bumps")
    },
    "given ranges": lambda: points(
        transform=ndm.Neural(net(), gamma_range=(-7, 2.5)),
        denoiser=ndm.Denoiser(net(), gamma_range=(-6.1, 3)),
        reverse_variance=ndm.LearnedVariance(4, gamma_range=(-5, 1)),
        volatility=ndm.LearnedVolatility(2, gamma_range=(-4, 1.7)),
    ),
    "latent": lambda: points(
        denoiser=ndm.Denoiser(net(latent=3)),
        noise=ndm.LatentNoise(ResidualMLP(3, 8, 1, level=False, outputs=8), (4,), 2, "legendre", 0.4),
        latent=ndm.GaussianLatent(net(level=False, outputs=6), 3),
    ),
    "scale": lambda: points(transform=ndm.Scale(Rising())),
    "blur": lambda: images(ConvNet(1, width=4, embedding=8, zero_init=False), ndm.Blur(1.3)),
    "noise per frequency": lambda: images(
        ConvNet(1, width=4, embedding=8, zero_init=False), noise=ndm.FrequencyNoise((1, 4, 4), 3, 4, limit=0.7)
    ),
    "bare": lambda: points(denoiser=Bare()),
    "v": lambda: points(denoiser=ndm.Denoiser(net(), "v")),
    "mixture": lambda: points(denoiser=ndm.Denoiser(net(), base=mixture())),
    "discretized": lambda: points(decoder=ndm.DiscretizedDecoder(16)),
    "weighted": lambda: points(decoder=ndm.WeightedDecoder(16)),
    "predicted": lambda: points(denoiser=ndm.Denoiser(net(heads=2)), reverse_variance="predicted"),
    "denoised": lambda: points(
        denoiser=ndm.Denoiser(net(heads=2), clip=1.0),
        decoder=ndm.DenoisedDecoder(16, -4.1, -2.3, approximate=True),
        reverse_variance="range",
    ),
    "ends": lambda: points(decoder=ndm.DiscretizedDecoder(16, ends=True), reverse_variance="large"),
    "score": lambda: points(denoiser=ndm.Denoiser(net(), "score", time="sigma", path="ve")),
    "clock": lambda: points(denoiser=ndm.Denoiser(net(), "velocity", time="t", clock=ndm.CosineSchedule(0.01))),
    "index": lambda: points(
        schedule=ndm.TableSchedule([0.99, 0.7, 0.1]), denoiser=ndm.Denoiser(net(), "eps", time="index")
    ),
    "diffusers": lambda: images(DiffusersUNet(SMALL, 7.0)),
    "posterior": lambda: points(reverse_variance=ndm.PosteriorVariance()),
    "constant volatility": lambda: points(volatility=ConstantVolatility(0.9)),
    "mixed": lambda: mixed(),
    "mixed base": lambda: mixed(based=True),
    "standardize": lambda: points(standardize=ndm.Standardize.fit(torch.randn(9, 4) / 3 + torch.arange(4))),
    "isotropic": lambda: calibrated("isotropic"),
    "diagonal": lambda: calibrated("diagonal", spacing="gamma"),
    "full": lambda: calibrated("full"),
    "frequency": lambda: calibrated_images(),
    "low rank": lambda: calibrated("full", rank=2, spacing="optimal"),
    "convolutions": lambda: images(ConvNet(1, width=4, embedding=8, zero_init=False, patch=2)),
    "u-net": lambda: images(UNet(1, width=8, groups=4, zero_init=False, attention="middle", fourier=(3,))),
    "transformer": lambda: images(
        ImageTransformer(1, width=8, depth=1, attention_heads=2, embedding=8, zero_init=False)
    ),
    "table": lambda: points(
        decoder=ndm.DiscretizedDecoder(16),
        transform=ndm.Separable(LevelTable(16, heads=3, beside=net(heads=3, level=False)), 3),
    ),
}


def shaken(model: ndm.NDM) -> ndm.NDM:
    """The model with other parameters than it was built with."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def outcome(model: ndm.NDM, x: Tensor, **options) -> list[Tensor]:
    """The terms of the bound, and samples."""
    found = []
    for steps in (None, 3, 5):
        torch.manual_seed(1)  # dropout's
        terms = model.bound(x, steps, generator=torch.Generator().manual_seed(2), **options)
        found += [terms.diffusion.detach(), terms.prior.detach(), terms.reconstruction.detach()]
    sampling = {"steps": 5, "generator": torch.Generator().manual_seed(3)}
    return [*found, ndm.sample(model, 4, tuple(x.shape[1:]), **sampling)]


def reloaded(model: ndm.NDM, path: Path) -> ndm.NDM:
    return ndm.NDM.from_pretrained(model.save_pretrained(path / "model"), allow=[Rising, Bare])


def assert_comes_back(model: ndm.NDM, x: Tensor, path: Path) -> None:
    loaded = reloaded(model, path)
    for before, after in zip(outcome(model, x), outcome(loaded, x), strict=True):
        assert not before.isinf().any()
        assert torch.equal(before.isnan(), after.isnan())
        assert torch.equal(before.nan_to_num(0.0), after.nan_to_num(0.0))
    assert loaded.config() == model.config()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_part_comes_back(make, dtype, tmp_path: Path) -> None:
    model, x = make()
    assert_comes_back(shaken(model.to(dtype)), x, tmp_path)


def test_no_part_is_left_out() -> None:
    tried = {type(part) for make in MODELS.values() for part in make()[0].modules()}
    public = [getattr(ndm, name) for name in ndm.__all__] + [getattr(ndm.networks, n) for n in ndm.networks.__all__]
    parts = {c for c in public if inspect.isclass(c) and issubclass(c, Part) and not inspect.isabstract(c)}
    bases = {ndm.Part, ndm.Schedule, ndm.Transform, ndm.Decoder, ndm.Noise, ndm.Latent, ndm.ReverseVariance}
    bases |= {ndm.networks.Backbone}
    elsewhere = {ndm.GuidedDenoiser}  # which has no bound: see below
    assert parts - bases - elsewhere <= tried


def test_a_guided_model_comes_back(tmp_path: Path) -> None:
    own = ndm.DirectDenoiser(net(classes=3))
    model = ndm.NDM(ndm.LinearSchedule(-9.0, 4.0), ndm.Identity(), ndm.GuidedDenoiser(own, 0.7))
    loaded = reloaded(shaken(model), tmp_path)
    drawn = [
        ndm.sample(m, 3, (4,), steps=4, labels=[0, 1, 2], generator=torch.Generator().manual_seed(0))
        for m in (model, loaded)
    ]
    assert torch.equal(*drawn)


# ---- parts that were in another model before, or came later


@pytest.mark.parametrize("make", RANGED.values(), ids=RANGED)
def test_a_trained_schedule_in_a_new_model(make, tmp_path: Path) -> None:
    schedule = ndm.LearnedSchedule(learn_endpoints=True)
    with torch.no_grad():
        schedule.end_shifts.copy_(torch.tensor([0.3, -0.5]))
    model, x = points(schedule=schedule, **make())
    assert_comes_back(model, x, tmp_path)


@pytest.mark.parametrize("new", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("make", RANGED.values(), ids=RANGED)
def test_a_schedule_that_was_replaced(make, new, tmp_path: Path) -> None:
    model, x = points(**make())
    model.schedule = new()
    assert model.denoiser.gamma_range == (-9.0, 4.0)  # the network's own, whatever the schedule
    assert_comes_back(model, x, tmp_path)


@pytest.mark.parametrize("make", RANGED.values(), ids=RANGED)
def test_a_part_that_was_replaced(make, tmp_path: Path) -> None:
    model, x = points()
    ((name, part),) = make().items()
    setattr(model, name, part)
    assert name == "noise" or part.gamma_range == (-9.0, 4.0)  # told as in the constructor
    expected = points(**{name: part})[0]
    expected.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(outcome(model, x), outcome(expected, x), strict=True))
    assert_comes_back(model, x, tmp_path)


def test_a_part_may_be_replaced_by_what_the_constructor_takes_for_one(tmp_path: Path) -> None:
    model, x = points()
    model.volatility, model.reverse_variance, model.denoiser, model.decoder = 0.8, "learned", Bare(), None
    model.standardize = ndm.Standardize(1.0, [1.0, 2.0, 3.0, 4.0])
    assert isinstance(model.reverse_variance, ndm.LearnedVariance)
    assert_comes_back(model, x, tmp_path)
    model.standardize = None
    assert_comes_back(model, x, tmp_path)


def test_a_part_that_does_not_fit_is_not_put_in() -> None:
    model, x = points(transform=ndm.Neural(net(), gate="anchored"))
    before, own = outcome(model, x), model.schedule
    for schedule in (ndm.LinearSchedule(-8.0, 4.0), ndm.LearnedSchedule(-9.0, 4.0, learn_endpoints=True)):
        with pytest.raises(ValueError, match="anchored"):
            model.schedule = schedule
        assert model.schedule is own
    assert all(torch.equal(*pair) for pair in zip(outcome(model, x), before, strict=True))


@pytest.mark.parametrize("make", RANGED.values(), ids=RANGED)
def test_a_second_model_leaves_a_part_that_it_shares_as_it_is(make, tmp_path: Path) -> None:
    parts = make()
    first, x = points(**parts)
    expected = outcome(first, x)
    second, _ = points(schedule=ndm.CosineSchedule(gamma_min=-11.0), **parts)
    assert all(torch.equal(*pair) for pair in zip(outcome(first, x), expected, strict=True))
    for name, model in (("first", first), ("second", second)):
        assert_comes_back(model, x, tmp_path / name)


def test_a_number_that_was_changed_comes_back(tmp_path: Path) -> None:
    model, x = points(transform=ndm.Separable(net(heads=3, level=False), 3), volatility=0.9)
    model.schedule.gamma_min, model.volatility.eta, model.denoiser.parameterization = -7.3, 1.2, "x"
    model.transform.gate, model.transform.basis, model.transform.gamma_range = "free", "bumps", (-6, 3)
    assert_comes_back(model, x, tmp_path)


def test_numbers_of_numpy_can_be_written(tmp_path: Path) -> None:
    model, x = points(schedule=ndm.LinearSchedule(np.float32(-8.1), np.float64(3.3)))
    assert_comes_back(model, x, tmp_path)


def test_a_module_that_is_no_part_is_not_forgotten(tmp_path: Path) -> None:
    model, _ = points(reverse_variance="learned")
    model.reverse_variance = nn.Identity()
    with pytest.raises(TypeError, match=r"reverse_variance=\.\.\.\) is a Identity"):
        model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool, tmp_path: Path) -> None:
    model, x = points(denoiser=ndm.Denoiser(net(dropout=0.5)))
    model.train(training)
    assert reloaded(model, tmp_path).training is training
    assert_comes_back(model, x, tmp_path)


def test_the_default_precision_of_the_moment_plays_no_part(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model, x = points(schedule=ndm.LearnedSchedule(-9.0, 4.0, knots=3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_comes_back(shaken(model), x, tmp_path)


# ---- folders of earlier versions


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It has no ranges where nobody gave one, no mode, and no argument for the ranges of two of the parts."""
    model, x = points(
        schedule=ndm.LearnedSchedule(-9.0, 4.0, learn_endpoints=True),
        transform=ndm.Neural(net()),
        denoiser=ndm.Denoiser(net(), gamma_range=(-6, 3)),
        reverse_variance=ndm.LearnedVariance(5),
        volatility=ndm.LearnedVolatility(3),
    )
    model.calibrate(x, 5, "full")
    path = shaken(model).save_pretrained(tmp_path / "model")
    config = json.loads((path / CONFIG).read_text())
    parts = config["model"]["init_args"]
    assert parts["transform"]["init_args"]["gamma_range"] == [-9.0, 4.0]
    parts["transform"]["init_args"]["gamma_range"] = None
    parts["denoiser"]["init_args"]["gamma_range"] = [-6, 3]
    for name in ("reverse_variance", "volatility"):
        assert parts[name]["init_args"].pop("gamma_range") == [-9.0, 4.0]
    assert config.pop("training") is True
    assert config["ndm_format"] == 1
    (path / CONFIG).write_text(json.dumps(config))
    (path / CHECKSUMS).unlink()
    loaded = ndm.NDM.from_pretrained(path)
    assert loaded.training
    for before, after in zip(outcome(model, x), outcome(loaded, x), strict=True):
        assert torch.equal(before, after)
