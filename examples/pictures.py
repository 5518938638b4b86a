"""Draw the README's pictures: tour.png, points in the plane, digits.png, and report.png, in docs/pictures/.

    ndm demo                                  # trains what the last two pictures show, and writes it to demo/
    python examples/pictures.py demo          # a minute for the first picture's model

The first shows data, the path that the data take on their way to the noise, samples, and the exact density of the
model; the model is that of the notebook tour-2d. The second shows samples of the demonstration's two models, and what F
does to some digits. The third is the top of the page that `ndm report` makes of these two, and needs Chromium.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ndm
from ndm.data import Digits, Pinwheel
from ndm.networks import ResidualMLP
from ndm.report import report

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"

#: Dots per inch; with it each picture has less than 250 kB.
DPI = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `ndm demo` has written")
    parser.add_argument("--out", type=Path, default=PICTURES, help="where to (default: docs/pictures)")
    parser.add_argument("--steps", type=int, default=3000, help="of the first model's training (default: %(default)s)")
    options = parser.parse_args()
    runs = {name: options.demo / run / "model" for name, run in (("Identity", "identity"), ("NDM", "ndm"))}
    for path in runs.values():
        if not path.is_dir():
            parser.error(f"there is no model in {path}: run `ndm demo --out {options.demo}` first")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    models = {name: ndm.NDM.from_pretrained(path).eval() for name, path in runs.items()}
    keep(digits(models), options.out / "digits.png")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser:
        page([options.demo / "identity", options.demo / "ndm"], options.out / "report.png", browser)
    else:
        print("no report.png: there is no Chromium here")
    data = Pinwheel()
    keep(tour(trained(data, options.steps), data), options.out / "tour.png")


def keep(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def page(runs: list[Path], picture: Path, browser: str) -> None:
    """The report of two runs as a browser shows it first."""
    with tempfile.TemporaryDirectory() as folder:
        file = report(runs, Path(folder) / "report.html", examples=64)
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", "--window-size=1100,1250", f"--screenshot={picture.resolve()}",
                file.resolve().as_uri(),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


def trained(data: Pinwheel, steps: int) -> ndm.NDM:
    """A small NDM of the plane, trained on the bound of ten steps, where a learned path is worth most."""
    torch.manual_seed(0)
    model = ndm.NDM(
        ndm.LinearSchedule(gamma_min=-7.0, gamma_max=5.0),
        ndm.Separable(ResidualMLP(2, hidden=32, heads=4, level=False), terms=4, gate="sigma"),
        ndm.Denoiser(ResidualMLP(2, hidden=64)),
        ndm.GaussianDecoder(),
        standardize=ndm.Standardize.fit(data.train),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = model.bound(data.train[torch.randint(len(data.train), (256,))], steps=10).total.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return model.eval()


@torch.no_grad()
def tour(model: ndm.NDM, data: Pinwheel) -> Figure:
    """Data, F over noise levels, samples and density, in a row."""
    low, high = model.schedule.end_points()
    x = model.to_model(data.test[:2000])
    colours = pyplot.get_cmap("hsv")(torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5)
    gamma = torch.linspace(low, high, 31)
    f = model.transform(x)(gamma[:, None].expand(-1, len(x)))  # (31, N, 2)

    figure, axes = pyplot.subplots(1, 7, figsize=(17.5, 2.8))
    limit = 1.03 * f.abs().max().item()
    for ax, i in zip(axes, (0, 8, 16, 23, 30), strict=False):
        points(ax, f[i], limit, f"F(x, γ), γ = {gamma[i]:.1f}" if i else "data x", colours)
        ax.plot(f[: i + 1, :80, 0], f[: i + 1, :80, 1], color="black", linewidth=0.3)
    generator = torch.Generator().manual_seed(0)
    found = ndm.sample(model, 2000, (2,), steps=250, generator=generator, progress=False)
    points(axes[5], found, 4.0, "samples", "black")
    side = torch.linspace(-4, 4, 121)
    grid = torch.cartesian_prod(side, side)
    log_prob = torch.cat([ndm.log_likelihood(model, part).log_prob for part in grid.split(4096)])
    axes[6].imshow(log_prob.exp().reshape(121, 121).T, origin="lower", extent=(-4, 4, -4, 4), cmap="magma", vmax=0.25)
    axes[6].set(xticks=[], yticks=[], title="exact density")
    return figure


def points(ax: Axes, x: Tensor, limit: float, title: str, colours: object) -> None:
    ax.scatter(x[:, 0], x[:, 1], s=1.5, c=colours, linewidths=0)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[], title=title)


@torch.no_grad()
def digits(models: dict[str, ndm.NDM]) -> Figure:
    """Test images and samples of both models on top; below, F of three digits over noise levels."""
    data = Digits()
    figure = pyplot.figure(figsize=(13, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    panels = {"test images": data.test[:64]}
    for name, model in models.items():
        generator = torch.Generator().manual_seed(0)
        found = ndm.sample(model, 64, data.shape, steps=100, generator=generator, progress=False)
        panels[f"{name}, samples in 100 steps"] = found
    for ax, (title, images) in zip(above.subplots(1, 3), panels.items(), strict=True):
        sheet = torch.nn.functional.pad(images[:, 0], (0, 1, 0, 1)).reshape(8, 8, 9, 9)
        image(ax, sheet.permute(0, 2, 1, 3).reshape(72, 72), "gray", 1.0)
        ax.set_title(title)

    model, x = models["NDM"], data.test[:2]
    low, high = model.schedule.end_points()
    gamma = torch.linspace(low, high, 9)
    moved = model.transform(x).displacement(gamma[:, None].expand(-1, len(x)))  # (9, 2, 1, 8, 8)
    axes = below.subplots(2 * len(x), 9)
    for i in range(len(x)):
        axes[2 * i, 0].set_ylabel("F(x, γ)")
        axes[2 * i + 1, 0].set_ylabel("F - x")
        for p in range(9):
            image(axes[2 * i, p], (x + moved[p])[i, 0], "gray", (x + moved)[:, i].abs().max().item())
            image(axes[2 * i + 1, p], moved[p, i, 0], "RdBu_r", moved.abs().max().item())
    for p in range(9):
        axes[0, p].set_title(f"γ = {gamma[p]:.1f}", fontsize=10)
    return figure


def image(ax: Axes, values: Tensor, colours: str, limit: float) -> None:
    ax.imshow(values, cmap=colours, vmin=-limit, vmax=limit)
    ax.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
