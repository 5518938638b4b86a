"""Every known trap is found where it is, and nothing is found where there is none."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.data import Gaussian, Tensors
from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.auditing.traps import require_labels, warnings_about
from ndm.networks import ResidualMLP
from tests.evaluation.auditing.conftest import LEVELS
from tests.evaluation.models import HIGH, LOW, Exact


def found(model: ndm.NDM, data, was_training: bool = False) -> list[str]:
    return warnings_about(model, data, Part.of(data, "test", None, 0, False), was_training)


def continuous(images: Tensor, denoiser: nn.Module | None = None) -> tuple[ndm.NDM, Tensors]:
    """A model of images with an estimate that is right on average."""
    mean = images.mean()
    denoiser = denoiser or ndm.Denoiser(lambda z, u: torch.full_like(z, mean), "x")
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), denoiser), Tensors(test=images)


def test_a_sound_model_has_no_warnings(exact: ndm.NDM, gaussian: Gaussian) -> None:
    assert found(exact, gaussian) == []
    assert found(*continuous(torch.rand(20, 3, 4, 4) * 2 - 1)) == []


@pytest.mark.parametrize(("top", "differs"), [(1.0, "lower by d log 2 nats"), (255.0, "higher by d log 127.5 nats")])
def test_images_that_are_not_from_minus_one(top: float, differs: str) -> None:
    (said,) = found(*continuous(torch.rand(20, 3, 4, 4) * top))
    assert differs in said
    add = int(re.search(r"pixels add (\d)", said)[1])  # type: ignore[index]
    assert math.log2(top) + add == pytest.approx(8, abs=0.01)  # of the uniform density: all pixels are alike


def test_a_network_for_other_units_than_the_datas(images: Tensors) -> None:
    def net(z: Tensor, u: Tensor) -> Tensor:
        return torch.full_like(z, mean)

    model = ndm.NDM(
        ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ndm.Denoiser(net, "x"), ndm.DiscretizedDecoder(LEVELS)
    )
    mean = float(images.test.mean())
    assert found(model, images) == []
    mean = (mean + 1) / 2  # trained on [0, 1]
    (said,) = found(model, images)
    assert "such as [0, 1] or [0, 255] in the place of [-1, 1]" in said


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_weights_from_half_precision(gaussian: Gaussian, dtype: torch.dtype, name: str) -> None:
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=16)))
    assert found(model, gaussian) == []
    stored = model.to(dtype).float()
    (said,) = found(stored, gaussian)
    assert f"is a number of {name}:" in said


def test_some_weights_in_half_precision(gaussian: Gaussian) -> None:
    class Mixed(Exact):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(2, 2), nn.Linear(2, 2).half()

    (said,) = found(ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Mixed()), gaussian)
    assert said.startswith("Some weights have half precision (torch.float16)")


def test_autocast(exact: ndm.NDM, gaussian: Gaussian) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (said,) = found(exact, gaussian)
    assert "autocast" in said


class Dropping(Exact):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return super().forward(self.drop(z), level)


def test_dropout_of_a_module_is_off_and_it_is_said(gaussian: Gaussian) -> None:
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Dropping())
    assert found(model, gaussian) == []
    (said,) = found(model, gaussian, was_training=True)
    assert "was in training mode" in said
    assert found(ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), gaussian, was_training=True) == []


def test_dropout_of_a_function_is_found(gaussian: Gaussian) -> None:
    drop = nn.Dropout(0.5)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ndm.Denoiser(lambda z, u: drop(z) * 0.3, "x"))
    (said,) = found(model, gaussian)
    assert "dropout is active" in said
    drop.eval()
    assert found(model, gaussian) == []


def test_missing_labels_are_refused(gaussian: Gaussian) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=4, classes=3)))
    with pytest.raises(ValueError, match=r"network has 3 classes and the test split has no labels"):
        require_labels(model, gaussian, "test")
    require_labels(model, Tensors(test=torch.zeros(2, 2), labels={"test": torch.tensor([0, 2])}), "test")
    require_labels(ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Exact()), gaussian, "test")


def test_latents() -> None:
    (said,) = found(*continuous(torch.randn(20, 4, 4, 4)))
    assert "cannot be compared with that of images" in said
