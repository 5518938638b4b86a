"""What a training says at its end, and what it leaves to look at."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.mixture import GaussianMixture

import ndm
from ndm.data import Pinwheel, Table, Tensors
from ndm.evaluation import EvaluationOptions, evaluate
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP
from ndm.training import Run, TrainerOptions, TrainingOptions, ending, fit
from ndm.training.ending import verdict
from ndm.training.module import Validation

RUN = Run(Path("runs/mine"))


def curve(*means: float, spread: float = 0.05) -> list[Validation]:
    """Validations of 100 examples whose paired differences have a standard error of about ``spread`` / 7."""
    generator = torch.Generator().manual_seed(0)
    examples = 3 * torch.randn(100, generator=generator)
    noises = spread * torch.randn(len(means), 100, generator=generator)
    noises = noises - noises.mean(1, keepdim=True)
    examples = examples - examples.mean()
    return [
        Validation(10 * (i + 1), mean + examples + noise)
        for i, (mean, noise) in enumerate(zip(means, noises, strict=True))
    ]


def said(validations: list[Validation], keep: str = "best", max_steps: int | None = 50) -> str:
    return "\n".join(verdict(validations, "nats", keep, TrainerOptions(max_steps=max_steps, max_time=9.0), RUN))


def test_the_validation_of_what_is_kept_is_said_with_its_unit_and_error() -> None:
    validations = curve(2.0, 1.0, 1.5)
    error = validations[1].totals.std() / 10
    assert f"validation: 1.000 +- {error:.3f} nats at step 20, the best" in said(validations)
    assert "validation: 1.500" in said(validations, keep="last")


def test_a_worse_end_is_spoken_of() -> None:
    assert "the last step, 30, is worse by 0.500 +- 0.0" in said(curve(2.0, 1.0, 1.5))
    assert "is worse by 0.00013 +- 0.00000 nats" in said(curve(2.0, 1.0, 1.00013, spread=0.0))
    assert "it is not kept" in said(curve(2.0, 1.0, 1.5))
    assert "WARNING" in said(curve(2.0, 1.0, 1.5), keep="last")
    assert "worse" not in said(curve(2.0, 1.0, 1.0001))


def test_a_run_that_has_not_converged_says_how_to_go_on() -> None:
    text = said(curve(5.0, 4.0, 3.0, 2.0, 1.0))
    assert "still improving, by 1.000 nats a validation" in text
    assert "ndm train --resume --out runs/mine --trainer.max_steps 100" in text
    assert "still improving, by 0.00024 nats" in said(curve(5.0, 4.0, 3.0, 1.00024, 1.0, spread=0.0))
    assert "still improving" not in said(curve(5.0, 4.0, 1.0, 1.0001, 1.0))
    assert "still improving" not in said(curve(1.0))


def test_nothing_is_said_of_no_validation() -> None:
    assert verdict([], "nats", "best", TrainerOptions(), RUN) == []


def test_a_paired_difference_has_its_own_error() -> None:
    before, after = curve(2.0, 1.0)
    gain, error = after.below(before)
    difference = (before.totals - after.totals).numpy()
    assert gain == pytest.approx(difference.mean(), rel=1e-5)
    assert error == pytest.approx(difference.std(ddof=1) / 10, rel=1e-5)


def trained(data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[Run, str]:
    torch.manual_seed(0)
    model = ndm.NDM(
        ndm.LinearSchedule(-8.0, 5.0),
        ndm.Identity(),
        ndm.Denoiser(ResidualMLP(data.shape[0], hidden=8, depth=1)),
        standardize=ndm.Standardize.fit(data.train),
    )
    trainer = TrainerOptions(max_steps=4, val_check_interval=2, accelerator="cpu")
    with caplog.at_level(logging.INFO, logger="ndm.training"):
        fit(model, data, tmp_path / "run", TrainingOptions(**options), trainer, progress=False, command="ndm train")
    return Run(tmp_path / "run"), caplog.text


def test_a_table_ends_with_rows_of_its_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, (200, 2))
    np.savetxt(tmp_path / "data.csv", values, delimiter=",", header="height,=weight", comments="")
    run, text = trained(Table(str(tmp_path / "data.csv")), tmp_path, caplog)
    with (run.path / "samples.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["height", "=weight"]
    assert "spreadsheet program may run as formulas: '=weight'; open it in another program" in text
    drawn = np.array(rows, float)
    assert drawn.shape == (1000, 2)
    assert np.abs(drawn.mean(0) - values.mean(0)).max() < 1.0  # in the data's units
    for command in (f"ndm evaluate {run.path}", f"ndm sample {run.path} -n 64 --out samples.csv", "ndm report"):
        assert command in text


def test_points_end_with_a_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, _ = trained(Pinwheel(train=60, validation=40, test=10), tmp_path, caplog)
    assert (run.path / "samples.png").read_bytes()[:4] == b"\x89PNG"


def test_a_mixture_of_rows_of_several_kinds_is_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    kind = random.integers(0, 2, 400)
    frame = pandas.DataFrame({"kind": np.array(["a", "b"])[kind], "value": random.normal(10.0 * kind, 0.1)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = Table(str(tmp_path / "t.csv"), kinds="auto")
    assert data.encoding is not None
    layouts, (d,) = data.encoding.layouts(), data.encoding.latent_shape
    denoiser = ndm.MixedDenoiser(ResidualMLP(d, hidden=8, depth=1, outputs=outputs_for(layouts)), layouts)
    model = ndm.NDM(
        ndm.LinearSchedule(-8.0, 8.0), ndm.Identity(), denoiser, ndm.MixedDecoder(layouts), standardize=data.encoding
    )
    said = ending._against_a_mixture(model, data, seed=0)
    assert said.startswith("WARNING: a mixture of 2 components describes the validation split better, by ")
    found = evaluate(model, data, EvaluationOptions(split="validation", mixture=True, likelihood=False))
    assert found.about["comparison"]["components"] == 2
    entropy = math.log(2) + math.log(0.1) + math.log(2 * math.pi * math.e) / 2  # of the kind, and of the value given it
    mixture = found.rows[found.find("Gaussian mixture")]
    assert mixture["value"] == pytest.approx(-entropy, abs=0.1 + 3 * mixture["stderr"])
    assert found.about["comparison"]["difference"] == pytest.approx(float(said.split("by ")[1].split(" ")[0]), abs=0.01)


def test_a_mixture_that_is_better_is_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.normal(-5, 0.1, (300, 2)), generator.normal(5, 0.1, (300, 2))]).astype(np.float32)
    generator.shuffle(rows)
    parts = {"train": rows[:400], "validation": rows[400:500], "test": rows[500:]}
    data = Tensors(**{name: torch.from_numpy(part) for name, part in parts.items()})
    run, text = trained(data, tmp_path, caplog, base="none")
    assert "WARNING: a Gaussian mixture of" in text
    mixture = GaussianMixture(2, random_state=0).fit(rows[:400]).score(rows[400:500])  # by scikit-learn itself
    model = ndm.log_likelihood(ndm.NDM.from_pretrained(run.model), data.validation).log_prob.mean().item()
    gap = float(text.split("better, by ")[1].split(" ")[0])
    assert gap == pytest.approx(mixture - model, abs=0.1)
