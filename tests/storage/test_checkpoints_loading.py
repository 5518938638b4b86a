"""What is refused on loading a model: other formats, damage, and files that would be executed."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ndm
import ndm.storage.checkpoints
from ndm.storage.checkpoints import CHECKSUMS, CONFIG, WEIGHTS, load_part, save_part
from tests.storage.models import calibrated, edit, plain_model


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
