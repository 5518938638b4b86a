"""`ndm import` makes a run of a diffusers model, on which the other commands work, or writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import ndm
from ndm.cli import main
from tests.cli.commands import Capture, error
from tests.networks.pipelines import N, pixels, saved, unet

PATTERNS = ["--data", "Patterns", "--data.size", "8", "--data.channels", "3"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline") / "pipeline")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of another size and with one channel, in colour and grey."""
    folder = tmp_path_factory.mktemp("images")
    for i, x in enumerate(pixels(40)):
        Image.fromarray(x.permute(1, 2, 0).byte().numpy()).resize((16, 16)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def imported(pipeline: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("import") / "runs" / "own"
    assert main(["import", str(pipeline), "--out", str(out), "--data.path", str(images)]) == 0
    return out


def test_the_run_has_the_model_and_the_data(imported: Path, pipeline: Path) -> None:
    assert sorted(f.name for f in imported.iterdir()) == ["config.yaml", "data.json", "environment.json", "model"]
    facts = json.loads((imported / "data.json").read_text())
    assert (facts["shape"], facts["levels"]) == ([3, 8, 8], 256)  # the network's size
    assert json.loads((imported / "environment.json").read_text())["command"].startswith("ndm import ")
    loaded, read = ndm.NDM.from_pretrained(imported / "model"), ndm.from_diffusers(pipeline)
    found = [m.bound(pixels(), N - 1, generator=torch.Generator().manual_seed(0)).total for m in (loaded, read)]
    assert torch.equal(*found)


@pytest.mark.slow
def test_the_other_commands_work_on_it(imported: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    run = str(imported)
    likelihood = ["--tolerance", "100", "--samples", "1", "--probes", "1"]
    few = ["--max-examples", "4", "--likelihood-examples", "2", "--times", "5", *likelihood]
    assert main(["evaluate", run, "--steps", str(N - 1), "--variances", "own", "isotropic", *few]) == 0
    rows = json.loads((imported / "evaluation.json").read_text())["rows"]
    assert [row["steps"] for row in rows][:2] == [N - 1, N - 1]
    assert all(row["value"] > 0 for row in rows)
    score = ["score", run, str(images), "--out", str(tmp_path / "scores.csv"), "--max-rows", "3", "--no-likelihood"]
    assert main(score) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 4
    assert (
        main(["sample", run, "-n", "4", "--out", str(tmp_path / "x.png"), "--method", "ancestral", "--steps", "5"]) == 0
    )
    assert main(["report", run, "--out", str(tmp_path / "report.html")]) == 0
    (imported / "evaluation.json").unlink()
    (imported / "evaluation.npz").unlink(missing_ok=True)


@pytest.mark.slow
def test_the_options_of_the_decoder_and_of_the_data(pipeline: Path, tmp_path: Path, capsys: Capture) -> None:
    words = [
        "import",
        str(pipeline),
        "--out",
        str(tmp_path / "run"),
        *PATTERNS,
        "--decoder",
        "discretized",
        "--no-clip",
    ]
    assert main(words) == 0
    assert "--steps 19 --variances own" in capsys.readouterr().err
    model = ndm.NDM.from_pretrained(tmp_path / "run" / "model")
    assert model.decoder.config()["init_args"]["ends"]
    assert type(model.decoder) is ndm.DiscretizedDecoder
    assert model.denoiser.clip is None
    words = ["evaluate", str(tmp_path / "run"), "--steps", "19", "--variances", "own", "--no-likelihood"]
    assert main([*words, "--max-examples", "3"]) == 0


def test_wrong_input_is_one_sentence_and_writes_nothing(
    pipeline: Path, images: Path, imported: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    words = ("import", str(pipeline), "--out", str(out))
    assert "exists; nothing was written" in error(capsys, "import", str(pipeline), "--out", str(imported), *PATTERNS)
    assert "There is no folder" in error(capsys, "import", str(tmp_path / "none"), "--out", str(out), *PATTERNS)
    assert "scheduler_config.json" in error(capsys, "import", str(images), "--out", str(out), *PATTERNS)
    assert "--out" in error(capsys, "import", str(pipeline), *PATTERNS)
    assert "path" in error(capsys, *words)
    assert str(tmp_path / "gone") in error(capsys, *words, "--data.path", str(tmp_path / "gone"))
    assert "did you mean" in error(capsys, *words, "--data.path", str(images), "--data.sise", "8")
    assert "takes images of 3 channels and 256 levels" in error(capsys, *words, "--data", "Digits")
    assert "(1, 8, 8)" in error(capsys, *words, *PATTERNS[:4], "--data.channels", "1")
    latent = saved(tmp_path / "latent", unet(4))
    assert "is of latents, not of pixels" in error(capsys, "import", str(latent), "--out", str(out), *PATTERNS)
    damaged = saved(tmp_path / "latent" / "damaged")  # of another network
    (damaged / "unet" / "config.json").write_text((latent / "unet" / "config.json").read_text())
    assert "diffusion_pytorch_model" in error(capsys, "import", str(damaged), "--out", str(out), *PATTERNS)
    assert not out.exists()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["latent"]


def test_a_network_with_classes_needs_labels(images: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, out = tmp_path / "classes", tmp_path / "run"
    saved(folder, unet(num_class_embeds=3))
    assert main(["import", str(folder), "--out", str(out), "--data.path", str(images)]) == 2
    assert "The network has 3 classes, and the data have no labels" in capsys.readouterr().err
    assert not out.exists()
