"""A saved model comes back bit for bit, nothing in its files is executed, and a crash loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ndm
import ndm.storage.checkpoints
from ndm.method.parts import Part
from ndm.networks import ResidualMLP
from ndm.storage.checkpoints import CARD, CHECKSUMS, CONFIG, WEIGHTS, load_part, save_part


class Own(Part):
    """A network of the user's own."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(2, 2)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)) * (self.width + u[:, None])


def net(**options) -> ResidualMLP:
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def levels() -> tuple[ndm.NDM, Tensor]:
    model = ndm.NDM(
        ndm.LearnedSchedule(-9.0, 4.0, learn_endpoints=True),
        ndm.Separable(net(heads=3, level=False), terms=3, basis="bumps"),
        ndm.DirectDenoiser(net(heads=3), "eps", ode=True),
        ndm.DiscretizedDecoder(16),
        reverse_variance="predicted",
        volatility=ndm.LearnedVolatility(3),
    )
    return model, torch.randint(16, (40, 2))


def continuous() -> tuple[ndm.NDM, Tensor]:
    x = torch.randn(40, 2) * torch.tensor([3.0, 0.2]) + 1 / 3
    model = ndm.NDM(
        ndm.CosineSchedule(gamma_max=7.1),
        ndm.Neural(net(), gate="anchored"),
        ndm.Denoiser(net(), gamma_range=(-9, 3)),
        reverse_variance=ndm.LearnedVariance(5),
        volatility=1.25,
        standardize=ndm.Standardize.fit(x),
    )
    return model, x


def calibrated() -> tuple[ndm.NDM, Tensor]:
    model, x = ndm.NDM(ndm.DDPMSchedule(), ndm.Identity(), ndm.Denoiser(net())), torch.randn(40, 2)
    model.calibrate(x, 3, "isotropic").calibrate(x, 5, "diagonal").calibrate(x, 7, "full").calibrate(
        x, 8, "full", rank=1
    )
    model.calibrate(x, 4, "diagonal", spacing="optimal")
    return model, x


def random_parameters(model: ndm.NDM) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))


def total(model: ndm.NDM, x: Tensor, steps: int | None) -> Tensor:
    return model.bound(x, steps, generator=torch.Generator().manual_seed(1)).total.detach()


def plain_model() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net()))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return plain_model().save_pretrained(tmp_path / "model")


def edit(path: Path, change) -> None:
    config = json.loads((path / CONFIG).read_text())
    change(config)
    (path / CONFIG).write_text(json.dumps(config))
    (path / CHECKSUMS).unlink()  # as whoever changes it on purpose has to


# ---- there and back


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


# ---- what is refused on loading


@pytest.mark.parametrize("path", ["os.system", "posix.system", "builtins.exec", "torch.nn.Linear", "ndm.Nothing"])
@pytest.mark.parametrize("where", ["top", "net", "schedule", "in a list", "unknown argument"])
def test_a_folder_that_names_something_else_is_refused(saved: Path, path: str, where: str, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)

    def change(config) -> None:
        target = {"class_path": path, "init_args": {"command": "touch /tmp/owned"}}
        arguments = config["model"]["init_args"]
        if where == "top":
            config["model"] = target
        elif where == "net":
            arguments["denoiser"]["init_args"]["net"] = target
        elif where == "in a list":
            arguments["volatility"] = [1.0, {"a": target}]
        else:
            arguments["schedule" if where == "schedule" else "callback"] = target

    edit(saved, change)
    with pytest.raises(ValueError, match="not a part of ndm"):
        ndm.NDM.from_pretrained(saved)
    assert not called


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_refused(saved: Path, version) -> None:
    edit(saved, lambda config: config.update(ndm_format=version))
    with pytest.raises(ValueError, match="reads format 1"):
        ndm.NDM.from_pretrained(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"model"', '{"ndm_format": 1}', '{"ndm_format": 1, "model": 3}']
)
def test_a_damaged_configuration_is_refused(saved: Path, text: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"damaged|format|class_path"):
        ndm.NDM.from_pretrained(saved)
    (saved / CONFIG).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        ndm.NDM.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(ValueError, match="damaged"):
        ndm.NDM.from_pretrained(saved)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_pickle_in_disguise_is_refused(saved: Path, monkeypatch) -> None:
    called = []
    monkeypatch.chdir(saved)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (saved / WEIGHTS).write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(ValueError, match="is a pickle under another name"):
            ndm.NDM.from_pretrained(saved)
    (saved / WEIGHTS).write_bytes(pickle.dumps(Bomb(), 0))  # text, which could be anything
    with pytest.raises(ValueError, match="damaged"):
        ndm.NDM.from_pretrained(saved)
    torch.save({"a": Bomb()}, saved / WEIGHTS)
    with pytest.raises(ValueError, match="is a pickle under another name"):
        ndm.NDM.from_pretrained(saved)
    assert not called
    assert not (saved / "exploded").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused(saved: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(saved)
    (saved / WEIGHTS).unlink()
    torch.save(Bomb(), saved / name)
    with pytest.raises(ValueError, match=rf"pickled weights \({name}\)"):
        ndm.NDM.from_pretrained(saved)
    assert not (saved / "exploded").exists()


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_that_begins_like_a_pickle_is_none(length: int, tmp_path: Path) -> None:
    """safetensors begins with the header's length, whose bytes may be any."""
    part = ndm.LearnedSchedule()
    save_part(part, tmp_path / "part")
    content = (tmp_path / "part" / WEIGHTS).read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert len(header) <= length
    padded = length.to_bytes(8, "little") + header.ljust(length) + content[8 + len(header) :]
    (tmp_path / "part" / WEIGHTS).write_bytes(padded)
    (tmp_path / "part" / CHECKSUMS).unlink()
    assert padded[:2] == bytes([0x80, length >> 8])
    loaded = load_part(tmp_path / "part", ndm.Schedule).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in part.state_dict().items())
    (tmp_path / "part" / WEIGHTS).write_bytes(padded[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load_part(tmp_path / "part", ndm.Schedule)


def test_tensors_that_do_not_fit_are_refused(saved: Path) -> None:
    def widen(config) -> None:
        config["model"]["init_args"]["denoiser"]["init_args"]["net"]["init_args"]["hidden"] = 9

    edit(saved, widen)
    with pytest.raises(ValueError, match="do not fit its configuration"):
        ndm.NDM.from_pretrained(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_flipped_bit_is_found(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for place in random.Random(0).sample(range(8 * len(whole)), 20):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        (saved / name).write_bytes(flipped)
        with pytest.raises(ValueError, match=r"damaged|format"):
            ndm.NDM.from_pretrained(saved)
    (saved / name).write_bytes(whole)
    ndm.NDM.from_pretrained(saved)


def test_a_change_on_purpose_says_how(saved: Path) -> None:
    (saved / CONFIG).write_text((saved / CONFIG).read_text() + " ")
    with pytest.raises(ValueError, match=rf"config\.json does not have the checksum.*delete .*{CHECKSUMS}"):
        ndm.NDM.from_pretrained(saved)
    (saved / CHECKSUMS).unlink()
    ndm.NDM.from_pretrained(saved)


def test_the_checksums_are_those_of_the_program_that_everybody_has(saved: Path) -> None:
    program = shutil.which("sha256sum") or pytest.skip("there is no sha256sum here")
    done = subprocess.run([program, "--check", CHECKSUMS], cwd=saved, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{CONFIG}: OK", f"{WEIGHTS}: OK"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = plain_model()
    model.denoiser.net.output.weight.data[0, 0] = value
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"denoiser\.net\.output\.weight contains NaN or infinite values"):
        ndm.NDM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("change", [lambda v: v * torch.nan, torch.Tensor.long, lambda v: v.to(torch.complex64)])
def test_buffers_that_are_not_finite_or_of_another_type_are_refused(tmp_path: Path, change) -> None:
    path = calibrated()[0].save_pretrained(tmp_path / "model")
    (path / CHECKSUMS).unlink()
    weights = load_file(path / WEIGHTS)
    name = next(name for name in weights if name.endswith("log_ratio"))
    save_file(weights | {name: change(weights[name])}, path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{name} (contains NaN|has the dtype)"):
        ndm.NDM.from_pretrained(path)


def test_a_model_in_double_precision_is_taken(tmp_path: Path) -> None:
    path = calibrated()[0].double().save_pretrained(tmp_path / "model")
    assert {p.dtype for p in ndm.NDM.from_pretrained(path).parameters()} == {torch.float64}


def test_a_missing_folder_or_file_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        ndm.NDM.from_pretrained(tmp_path / "nowhere")
    (saved / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        ndm.NDM.from_pretrained(saved)


# ---- what is refused on saving


def test_a_model_that_cannot_be_written_writes_nothing(tmp_path: Path) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Scale(lambda gamma: gamma), ndm.Denoiser(net()))
    with pytest.raises(TypeError, match=r"Scale\(a=\.\.\.\) is a function"):
        model.save_pretrained(tmp_path / "deep" / "model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"Denoiser\(net=\.\.\.\) is a Linear"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(nn.Linear(2, 2))).save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("also dear")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="nothing was written"):
            plain_model().save_pretrained(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis"]
    (tmp_path / "empty").mkdir()
    ndm.NDM.from_pretrained(plain_model().save_pretrained(tmp_path / "empty"))


def test_an_earlier_model_is_replaced_whole(saved: Path) -> None:
    (saved / "note.txt").write_text("of the old model")
    new = plain_model()
    new.save_pretrained(saved)
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, new.denoiser.net.output.weight)
    assert sorted(p.name for p in saved.iterdir()) == [CARD, CHECKSUMS, CONFIG, WEIGHTS]
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


# ---- crashes


def fail(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("crash", ["save_file", "write_text", "first rename", "second rename"])
def test_an_interrupted_save_leaves_the_old_model(saved: Path, crash: str, monkeypatch) -> None:
    old = ndm.NDM.from_pretrained(saved).state_dict()
    original, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == {"first rename": 1, "second rename": 2}[crash]:
            fail()
        return original(self, target)

    with monkeypatch.context() as patch:
        if crash == "save_file":
            patch.setattr(ndm.storage.checkpoints, "save_file", fail)
        elif crash == "write_text":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            plain_model().save_pretrained(saved)
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())
    assert [p.name for p in saved.parent.iterdir()] == ["model"]  # and no litter


def test_a_kill_between_the_renames_loses_nothing(saved: Path, monkeypatch) -> None:
    """As above, but nothing after the failing line is run: the machine lost its power."""
    old = ndm.NDM.from_pretrained(saved).state_dict()
    original, killed = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if killed or target == saved:  # everything from the second rename on
            killed.append(target)
            fail()
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(ndm.storage.atomic.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            plain_model().save_pretrained(saved)
    assert not saved.exists()
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())

    new = plain_model()  # and one can go on from there
    new.save_pretrained(saved)
    weight = new.denoiser.net.output.weight
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, weight)
    assert not saved.with_name(".model-old").exists()


def test_a_process_killed_while_it_writes_loses_nothing(saved: Path) -> None:
    """SIGKILL, which no program can catch, when half of the new tensors are on the disk."""
    signal_file = saved.parent / "half-way"
    program = f"""
        import pathlib, time
        import ndm, ndm.storage.checkpoints

        whole = ndm.storage.checkpoints.save_file

        def half(tensors, path):
            whole(tensors, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            pathlib.Path({str(signal_file)!r}).touch()
            time.sleep(600)

        ndm.storage.checkpoints.save_file = half
        model = ndm.NDM.from_pretrained({str(saved)!r})
        model.denoiser.net.output.weight.data += 1
        model.save_pretrained({str(saved)!r})
    """
    old = {k: v.clone() for k, v in ndm.NDM.from_pretrained(saved).state_dict().items()}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) as process:
        try:
            deadline = time.monotonic() + 120
            while not signal_file.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert signal_file.exists(), "the program did not get to its writing"
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    loaded = ndm.NDM.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in old.items())
    new = plain_model()  # and one can go on from there
    new.save_pretrained(saved)
    weight = new.denoiser.net.output.weight
    assert torch.equal(ndm.NDM.from_pretrained(saved).denoiser.net.output.weight, weight)
