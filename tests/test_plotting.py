"""Pictures: what is where in them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

import ndm
from ndm import plotting
from ndm.evaluation import Evaluation
from ndm.networks import ResidualMLP


def test_a_grid_keeps_every_image_in_its_place() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 3)
    grid = plotting._grid(images)
    assert grid.shape == (1, 2 * 3, 3 * 4)
    corners = grid[0, ::3, ::4]
    torch.testing.assert_close(corners, torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, -1.0]]))
    assert (grid[0, 2] == 0).all()  # the line between two rows


@pytest.mark.parametrize("shape", [(9, 1, 8, 8), (4, 3, 4, 4), (20, 2), (20, 1)])
def test_samples_are_drawn(tmp_path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "samples.png"
    plotting.save_grid(torch.rand(shape) * 2 - 1, path, levels=17 if len(shape) == 4 else None)
    picture = imread(path)
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.05  # there is something to see


def test_lowest_and_highest_level_are_black_and_white(tmp_path) -> None:
    dark, bright = -16 / 17, 16 / 17  # the outer ones of 17 levels
    for value, shade in ((dark, 0.0), (bright, 1.0)):
        plotting.save_grid(torch.full((1, 1, 8, 8), value), tmp_path / "one.png", levels=17)
        picture = imread(tmp_path / "one.png")[..., :3]
        height, width = picture.shape[:2]
        assert picture[height // 2, width // 2].max() == pytest.approx(shade, abs=0.01)


@pytest.fixture
def model() -> ndm.NDM:
    torch.manual_seed(0)
    f = ResidualMLP(16, hidden=8, depth=1, heads=3, level=False, zero_init=False)
    net = ResidualMLP(16, hidden=8, depth=1)
    return ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Separable(f, terms=3), ndm.Denoiser(net), ndm.DiscretizedDecoder(17))


def test_the_transformation_and_trajectories_are_drawn(model: ndm.NDM, tmp_path) -> None:
    plotting.transformation(model, torch.rand(2, 1, 4, 4), tmp_path / "f.png", points=5)
    plotting.trajectories({"one": model, "two": model}, (1, 4, 4), tmp_path / "t.png", steps=12)
    for name in ("f.png", "t.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.05


def test_the_bound_is_drawn_against_the_steps(tmp_path) -> None:
    rows = [
        {"quantity": "bound", "steps": s, "variance": v, "value": 2.0 + 1 / (s or 1e9), "stderr": 0.1, "unit": "nats"}
        for s, v in ((10, "posterior"), (50, "posterior"), (10, "isotropic"), (50, "isotropic"), (None, None))
    ]
    plotting.bound_by_steps({"a": Evaluation(rows), "b": Evaluation(rows)}, tmp_path / "b.png")
    assert imread(tmp_path / "b.png").size > 1e5


@pytest.mark.slow
def test_no_title_lies_on_another(model: ndm.NDM, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (1, 2, 4):
        drawn: list[Figure] = []
        monkeypatch.setattr(plotting, "_save", lambda figure, path, drawn=drawn: drawn.append(figure))
        plotting.transformation(model, torch.rand(n, 1, 4, 4), tmp_path / "f.png", points=9)
        (figure,) = drawn
        figure.savefig(tmp_path / "f.png")  # which lays it out
        above = figure.get_suptitle()
        assert above.startswith("The transformation")
        bottom = figure._suptitle.get_window_extent().y0
        assert bottom > max(ax.title.get_window_extent().y1 for ax in figure.axes)


PICTURE = """
import sys
import ndm.plotting, ndm.training
import matplotlib, torch
ndm.plotting.save_grid(torch.rand(4, 1, 8, 8), sys.argv[1])
before = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
assert {key: value for key, value in matplotlib.rcParams.items() if key != "backend"} == before
from matplotlib import pyplot
assert pyplot.get_fignums() == []
print(matplotlib.get_backend())
"""


@pytest.mark.parametrize("backend", ["svg", "module://matplotlib_inline.backend_inline"])
@pytest.mark.slow
def test_the_users_own_pictures_go_where_they_went_before(tmp_path, backend: str) -> None:
    if backend.startswith("module"):
        pytest.importorskip("matplotlib_inline")  # a notebook's
    found = subprocess.run(
        [sys.executable, "-c", PICTURE, tmp_path / "x.png"],
        env={**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": os.devnull},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() in (backend, "inline")
    assert imread(tmp_path / "x.png").size > 1e5
