"""A saved model comes back bit for bit."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

import ndm
import ndm.storage.checkpoints
from ndm.storage.checkpoints import CARD, CHECKSUMS, CONFIG, WEIGHTS, load_part, save_part
from tests.storage.models import Own, calibrated, continuous, levels, plain_model, random_parameters, total


@pytest.mark.parametrize("make", [levels, continuous, calibrated])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_comes_back_bit_for_bit(make, dtype, tmp_path: Path) -> None:
    model, x = make()
    model = model.to(dtype)
    random_parameters(model)
    x = x.to(dtype) if x.is_floating_point() else x
    path = model.save_pretrained(tmp_path / "some" / "where")
    assert sorted(p.name for p in path.iterdir()) == [CARD, CHECKSUMS, CONFIG, WEIGHTS]
    loaded = ndm.NDM.from_pretrained(str(path))
    assert loaded.config() == model.config()
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert {k: p.requires_grad for k, p in loaded.named_parameters()} == {
        k: p.requires_grad for k, p in model.named_parameters()
    }
    for steps in (None, 3, 4, 5, 7, 8, 10):
        assert torch.equal(total(model, x, steps), total(loaded, x, steps)), steps


def test_calibrations_matter_and_come_along(tmp_path: Path) -> None:
    model, x = calibrated()
    loaded = ndm.NDM.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert list(loaded.calibrations) == ["3", "5", "7", "8", "4"]
    assert torch.equal(loaded.grid(4), model.grid(4))
    assert loaded.calibrations["8"].basis.shape == (8, 1, 2)
    with_them = [total(loaded, x, steps) for steps in (3, 5, 7)]
    for steps, value in zip((3, 5, 7), with_them, strict=True):
        assert total(loaded.uncalibrate(steps), x, steps).mean() > value.mean() + 1


def test_a_loaded_model_stands_on_its_own(tmp_path: Path) -> None:
    model = plain_model()
    path = model.save_pretrained(tmp_path / "model")
    loaded, x = ndm.NDM.from_pretrained(path), torch.randn(4, 2)
    expected = total(loaded, x, None)
    (path / WEIGHTS).write_bytes(b"overwritten")
    random_parameters(model)
    assert torch.equal(total(loaded, x, None), expected)
    random_parameters(loaded)  # and can be trained on


def test_own_classes_need_leave(tmp_path: Path) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Neural(Own(5)), ndm.Denoiser(Own()))
    path = model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"Own.*allow=\[YourClass\]"):
        ndm.NDM.from_pretrained(path)
    loaded, x = ndm.NDM.from_pretrained(path, allow=[Own]), torch.randn(3, 2)
    assert loaded.transform.net.width == 5
    assert torch.equal(total(loaded, x, 10), total(model, x, 10))


def test_any_part_can_be_saved(tmp_path: Path) -> None:
    part = ndm.LearnedSchedule(-7.0, 2.0)
    save_part(part, tmp_path / "schedule")
    assert sorted(p.name for p in (tmp_path / "schedule").iterdir()) == [CHECKSUMS, CONFIG, WEIGHTS]
    assert load_part(tmp_path / "schedule", ndm.Schedule).config() == part.config()
    with pytest.raises(ValueError, match="holds a LearnedSchedule, not a NDM"):
        ndm.NDM.from_pretrained(tmp_path / "schedule")


def test_others_can_read_the_folder(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755
