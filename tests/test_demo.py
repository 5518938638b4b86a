"""The demonstration: equal sizes, honest sentences, nothing overwritten; slow: all of it, briefly trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ndm import demo
from ndm.evaluation import Evaluation


def test_both_models_have_as_many_parameters() -> None:
    first, second = demo._parameters(demo.baseline()), demo._parameters(demo.neural())
    assert abs(first - second) < 0.005 * first
    assert 0.05 < demo._parameters(demo.neural().transform) / second < 0.2


def test_both_learn_their_end_points() -> None:
    for build in demo.MODELS.values():
        model = build()
        assert model.schedule.end_shifts is not None
        terms = model.bound(torch.randint(17, (8, 1, 8, 8)))
        terms.total.mean().backward()
        assert (model.schedule.end_shifts.grad != 0).all()


def evaluation(values: torch.Tensor) -> Evaluation:
    row = {"quantity": "bound", "steps": 10, "variance": "posterior", "value": values.mean().item(), "stderr": 0.1,
           "unit": "bits/dim", "examples": len(values), "reconstruction": 0.5, "prior": 0.0}  # fmt: skip
    return Evaluation([row, row | {"steps": None, "variance": None}], {}, [values, values])


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [(-0.5, "in fewer bits than Identity"), (0.5, "needs more bits than Identity"), (0.0, "No difference beyond")],
)
def test_it_says_what_the_figures_show(shift: float, sentence: str) -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / 10
    first = evaluation(torch.full((100,), 2.0))
    second = evaluation(2.0 + shift + noise)
    text = "\n".join(demo._findings(first, second))
    assert sentence in text
    assert f"{shift:+.3f} ± 0.010" in text or shift == 0.0
    others = {"in fewer bits than Identity", "needs more bits than Identity", "No difference beyond"} - {sentence}
    assert not any(other in text for other in others)


def test_an_earlier_demo_is_not_overwritten(tmp_path: Path) -> None:
    assert demo._free(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert demo._free(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "report.md").write_text("kept")
    assert demo._free(tmp_path / "demo") == tmp_path / "demo-2"


@pytest.mark.parametrize(("cpu", "said"), [(9.5, False), (5.0, True)])
def test_a_busy_machine_is_spoken_of(cpu: float, said: bool) -> None:
    trained = {name: demo.Trained(100, cpu, 10.0, Evaluation([], {}, [])) for name in demo.MODELS}
    assert bool(demo._comparable(trained)) is said
    assert all("50%" in line for line in demo._comparable(trained))


@pytest.mark.slow
def test_the_whole_demonstration(tmp_path: Path) -> None:
    folder = demo.run(tmp_path / "demo", seconds=5)
    report = (folder / "report.md").read_text()
    assert report.count("| bound, continuous time |") == 2  # after equal times, and after equal steps
    steps = re.search(r"equal numbers of steps, ([\d,]+) each", report)
    assert steps
    taken = re.search(r"\| training steps \| ([\d,]+) \| ([\d,]+) \|", report)
    assert taken
    assert int(steps[1].replace(",", "")) == min(int(count.replace(",", "")) for count in taken.groups())
    assert "ODE likelihood" in report
    for name in ("samples.png", "transformation.png", "trajectories.png", "bound.png"):
        assert (folder / name).stat().st_size > 10_000
    for run in ("identity", "ndm"):
        assert (folder / run / "model" / "model.safetensors").is_file()
        assert (folder / run / "evaluation.json").is_file()
