r"""The demonstration: on real handwritten digits, a conventional diffusion model beside an NDM, everything else equal.

Both have the same number of parameters, the same training time, the same code, and learn their schedule's end points.
They differ in the transformation, Identity or Separable, whose network takes its parameters from the denoiser's, and in
that the NDM's reverse process is direct, with one more head for the ODE.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ndm
from ndm import plotting
from ndm.data import Digits, evenly_spaced
from ndm.evaluation import Evaluation, evaluate, mean_and_error
from ndm.networks import LevelTable, ResidualMLP, UNet
from ndm.training import Run, TrainerOptions, TrainingOptions, fit
from ndm.training.run import read_checkpoint

__all__ = ["baseline", "neural", "run"]

#: Seconds of training for each model. Evaluation and pictures come on top.
SECONDS = 120.0

#: Of both models. By benchmarks/results/suite/tuning--digits.json 1.6e-2 is better still for either, in 30 seconds.
RATE = 8e-3

STEPS = (10, 50, 1000, None)

COVARIANCES = ("posterior", "isotropic")

BASELINE, NEURAL = "Identity", "NDM (Separable, direct)"


def baseline() -> ndm.NDM:
    """The conventional model: F(x, gamma) = x."""
    return _model(ndm.Identity(), ndm.Denoiser(UNet(1, width=4, multipliers=(5, 7), groups=4)))


def neural() -> ndm.NDM:
    """The NDM, with as many parameters: a smaller denoiser, and a network of the difference in F."""
    net = LevelTable(levels=17, heads=2, beside=ResidualMLP(64, hidden=62, depth=1, heads=2, level=False))
    denoiser = ndm.DirectDenoiser(UNet(1, width=4, multipliers=(4, 7), groups=4, heads=2), ode=True)
    return _model(ndm.Separable(net, terms=2, gate="free"), denoiser)


def _model(transform: ndm.Transform, denoiser: torch.nn.Module) -> ndm.NDM:
    return ndm.NDM(
        schedule=ndm.LearnedSchedule(gamma_min=-6.0, gamma_max=5.0, learn_endpoints=True),
        transform=transform,
        denoiser=denoiser,
        decoder=ndm.WeightedDecoder(levels=17),
    )


#: Both by name; each builds its model.
MODELS = {BASELINE: baseline, NEURAL: neural}


def run(out: str | os.PathLike[str] = "demo", seconds: float = SECONDS, seed: int = 0) -> Path:
    """Train both models, measure them, draw the pictures, and say what the figures show.

    Args:
        out: the folder; if there is something in it, the next free name (demo-2, ...) is taken.
        seconds: of training, for each model.
        seed: of everything random.

    Returns:
        The folder that was written.
    """
    folder = _free(Path(out))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    print(f"training {' and '.join(MODELS)} side by side, {seconds:.0f} seconds each, then evaluating them", flush=True)
    models, steps, evaluations = _side_by_side(folder, seconds, seed)
    with _one_thread():
        _pictures(models, evaluations, Digits(), folder, seed)
    report = _report(models, steps, evaluations, seconds, time.perf_counter() - began)
    (folder / "report.md").write_text(report)
    print("\n" + report)
    print(
        f"Written to {folder}/: report.md; samples.png, transformation.png, trajectories.png and bound.png; "
        "and the two runs, identity and ndm."
    )
    return folder


def _side_by_side(
    folder: Path, seconds: float, seed: int
) -> tuple[dict[str, ndm.NDM], dict[str, int], dict[str, Evaluation]]:
    """Both models trained and evaluated, each in a process of its own with half of the cores, so that neither is
    favoured by what else the machine does meanwhile."""
    cores = os.cpu_count() or 1
    threads = max(1, min(4, cores // len(MODELS)))
    with ProcessPoolExecutor(min(cores, len(MODELS)), mp_context=get_context("spawn")) as pool:
        jobs = {n: pool.submit(_train_and_evaluate, n, folder / _slug(n), seconds, seed, threads) for n in MODELS}
        results = {name: job.result() for name, job in jobs.items()}
    models = {name: ndm.NDM.from_pretrained(folder / _slug(name) / "model").eval() for name in MODELS}
    return models, {n: r[0] for n, r in results.items()}, {n: r[1] for n, r in results.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """For networks this small several threads gain little, and on a busy machine wait for each other without end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _slug(name: str) -> str:
    return name.split()[0].lower()


def _free(path: Path) -> Path:
    """The path itself if nothing is there, else the next free name, so that no earlier result is lost."""
    candidate, n = path, 1
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _train_and_evaluate(name: str, folder: Path, seconds: float, seed: int, threads: int) -> tuple[int, Evaluation]:
    """Train one model into ``folder``; how many steps it took, and how good it is on the test split."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = Digits()
    training = TrainingOptions(learning_rate=RATE, weight_decay=0.01, ema=0.995, batch_size=128)
    limits = TrainerOptions(max_steps=None, max_time=seconds, accelerator="cpu", val_check_interval=250)
    model = fit(MODELS[name](), data, folder, training, limits, seed=seed, progress=False)
    steps = read_checkpoint(Run(folder).last)["global_step"]
    evaluation = evaluate(
        model, data, steps=STEPS, covariances=COVARIANCES, seed=seed, progress=False,
        likelihood_examples=100, divergence="hutchinson", probes=2, samples=2,
    )  # fmt: skip
    evaluation.save(folder / "evaluation.json")
    return steps, evaluation


def _pictures(
    models: dict[str, ndm.NDM], evaluations: dict[str, Evaluation], data: Digits, folder: Path, seed: int
) -> None:
    test = data.test
    panels: dict[str, Tensor] = {"data": test[evenly_spaced(len(test), 64)]}
    for name, model in models.items():
        generator = torch.Generator().manual_seed(seed)
        panels[f"{name}, 100 steps"] = ndm.sample(model, 64, data.shape, steps=100, generator=generator)
    plotting.side_by_side(panels, folder / "samples.png")
    plotting.transformation(models[NEURAL], test[evenly_spaced(len(test), 4)], folder / "transformation.png")
    plotting.trajectories(models, data.shape, folder / "trajectories.png", seed=seed)
    plotting.bound_by_steps(evaluations, folder / "bound.png")


def _report(
    models: dict[str, ndm.NDM],
    steps: dict[str, int],
    evaluations: dict[str, Evaluation],
    seconds: float,
    total: float,
) -> str:
    lines = [
        "# Handwritten digits: a conventional diffusion model and an NDM",
        "",
        "Test split of scikit-learn's digits (250 images of 8x8 pixels, 17 levels), bits per dimension (lower is",
        f"better) ± standard error over the images. {seconds:.0f} seconds of training each, one seed.",
        "",
        "| | " + " | ".join(models) + " | difference, paired |",
        "|---|" + "---|" * (len(models) + 1),
    ]
    first, second = evaluations[BASELINE], evaluations[NEURAL]
    for i, row in enumerate(first.rows):
        values = [f"{e.rows[i]['value']:.3f} ± {e.rows[i]['stderr']:.3f}" for e in (first, second)]
        lines.append(f"| {_label(row)} | {values[0]} | {values[1]} | {_difference(first, second, i)[0]} |")
    for label, figure in (
        ("parameters", {n: f"{_parameters(m):,}" for n, m in models.items()}),
        ("of which in F", {n: f"{_parameters(m.transform):,}" for n, m in models.items()}),
        ("training steps", {n: f"{s:,}" for n, s in steps.items()}),
        ("milliseconds a training step", {n: f"{1000 * seconds / s:.1f}" for n, s in steps.items()}),
        (
            "gamma_0 and gamma_1, learned",
            {n: "{:.2f}, {:.2f}".format(*m.schedule.end_points()) for n, m in models.items()},
        ),
    ):
        lines.append(f"| {label} | " + " | ".join(figure[n] for n in models) + " | |")
    lines += ["", *_findings(first, second), "", _environment(total)]
    return "\n".join(lines) + "\n"


def _label(row: dict[str, Any]) -> str:
    if row["quantity"] != "bound":
        return f"ODE likelihood ({row['examples']} images): {row['kind']}"
    if row["steps"] is None:
        return "bound, continuous time"
    variance = "posterior variance" if row["variance"] == "posterior" else "calibrated variance"
    return f"bound, T = {row['steps']}, {variance}"


def _difference(first: Evaluation, second: Evaluation, i: int) -> tuple[str, float, float]:
    """NDM minus baseline on the same images: as text, and as the mean and its standard error."""
    mean, error = mean_and_error(second.per_example[i] - first.per_example[i])
    return f"{mean:+.3f} ± {error:.3f}", mean, error


def _findings(first: Evaluation, second: Evaluation) -> list[str]:
    """What the figures show, whichever way they fall: a difference counts from two standard errors on."""
    said: dict[str, list[str]] = {"lower": [], "higher": [], "even": []}
    for i, row in enumerate(first.rows):
        text, mean, error = _difference(first, second, i)
        verdict = "even" if abs(mean) < 2 * error else "lower" if mean < 0 else "higher"
        said[verdict].append(f"{_label(row).split(' (')[0]} ({text})")
    sentences = {
        "lower": "The learned transformation codes the digits in fewer bits than Identity: {}.",
        "higher": "The learned transformation needs more bits than Identity: {}.",
        "even": "No difference beyond two standard errors: {}.",
    }
    lines = ["What the figures show, at equal parameters and equal training time:", ""]
    lines += [f"- {sentences[v].format('; '.join(rows))}" for v, rows in said.items() if rows]
    for name, evaluation in ((BASELINE, first), (NEURAL, second)):
        own, best = evaluation.find("bound", 10, "posterior"), evaluation.find("bound", 10, "isotropic")
        if own is not None and best is not None:
            gain = evaluation.rows[own]["value"] - evaluation.rows[best]["value"]
            lines.append(
                f"- Calibrating the reverse variance takes {gain:.3f} bits per dimension off {name} at T = 10."
            )
        row = evaluation.rows[evaluation.find("bound") or 0]
        lines.append(
            f"- {name} spends {row['reconstruction']:.3f} of its {row['value']:.3f} bits in continuous time on the "
            "reconstruction."
        )
    lines.append("- One seed and a short training: see benchmarks/ for comparisons meant to be quoted.")
    return lines


def _environment(total: float) -> str:
    return (
        f"`ndm demo`: {total:.0f} seconds in all, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{os.cpu_count()} cores, one process for each model."
    )
