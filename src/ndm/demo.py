r"""Demonstration: a conventional diffusion model and an NDM, compared on handwritten digits under equal conditions.

Both have the same number of parameters, use the same code, and learn their schedule's end points. They are compared
after the same training time, and after the same number of steps: the model with more steps is trained again with as
many as the other. The NDM has a Separable transformation instead of Identity, with a correspondingly smaller denoiser,
and a direct reverse process with an additional head for the ODE.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ndm
from ndm import plotting
from ndm.data import Digits, evenly_spaced
from ndm.evaluation import Evaluation, evaluate, mean_and_error
from ndm.networks import LevelTable, ResidualMLP, UNet
from ndm.training import Run, TrainerOptions, TrainingOptions, fit
from ndm.training.reading import read_checkpoint

__all__ = ["baseline", "neural", "run"]

#: Seconds of training for each model, without the training for equal steps, the evaluation and the plots.
SECONDS = 90.0

#: Approximate seconds to evaluate a model, for the progress bar.
EVALUATION = 40.0

#: The fraction of a core below which a training run counts as disturbed by other processes.
UNDISTURBED = 0.9

#: The learning rate of both models. Those of digits-tuned in benchmarks/suite.yaml, for 90 seconds, are higher.
RATE = 8e-3

STEPS = (10, 50, 1000, None)

COVARIANCES = ("posterior", "isotropic")

BASELINE, NEURAL = "Identity", "NDM (Separable, direct)"


def baseline() -> ndm.NDM:
    """The conventional model: F(x, gamma) = x."""
    return _model(ndm.Identity(), ndm.Denoiser(UNet(1, width=4, multipliers=(5, 7), groups=4)))


def neural() -> ndm.NDM:
    """The NDM, with the same number of parameters: a smaller denoiser, and a network in F with the difference."""
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


#: The functions that build the models, by name.
MODELS = {BASELINE: baseline, NEURAL: neural}


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        steps: the number of steps.
        cpu: CPU time of the training in seconds.
        wall: wall time in seconds.
        evaluation: the evaluation of the trained model on the test split.
    """

    steps: int
    cpu: float
    wall: float
    evaluation: Evaluation

    @property
    def share(self) -> float:
        """The fraction of a core used by the training."""
        return self.cpu / self.wall


def run(out: str | os.PathLike[str] = "demo", seconds: float = SECONDS, seed: int = 0) -> Path:
    """Train and evaluate both models, plot the results, and write a summary.

    Args:
        out: the output folder; if it is not empty, the next free name (demo-2, ...) is used.
        seconds: the training time of each model.
        seed: the seed of all random numbers.

    Returns:
        The output folder.
    """
    folder = _free(Path(out))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    print(
        f"training {' and '.join(MODELS)} side by side, {seconds:.0f} seconds each, then one of them again for as many "
        "steps as the other took",
        flush=True,
    )
    trained, again = _side_by_side(folder, seconds, seed)
    models = {name: ndm.NDM.from_pretrained(folder / _slug(name) / "model").eval() for name in MODELS}
    with _one_thread():
        _pictures(models, {name: one.evaluation for name, one in trained.items()}, Digits(), folder, seed)
    report = _report(models, trained, again, seconds, time.perf_counter() - began)
    (folder / "report.md").write_text(report)
    print("\n" + report)
    print(
        f"Written to {folder}/: report.md; samples.png, transformation.png, trajectories.png and bound.png; "
        "and the runs, identity, ndm and equal-steps."
    )
    return folder


def _side_by_side(folder: Path, seconds: float, seed: int) -> tuple[dict[str, Trained], dict[str, Trained]]:
    """Train and evaluate both models for the same time, and for the same number of steps.

    Each is trained in its own process with half of the cores, so that other load on the machine affects both equally.
    The model that took more steps is trained again with as many as the other.
    """
    cores = os.cpu_count() or 1
    threads = max(1, min(4, cores // len(MODELS)))
    with ProcessPoolExecutor(min(cores, len(MODELS)), mp_context=get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(_train_and_evaluate, name, folder / _slug(name), seconds, None, seed, threads)
            for name in MODELS
        }
        _watch("both, for equal seconds", [folder / _slug(name) for name in MODELS], list(jobs.values()), seconds)
        trained = {name: job.result() for name, job in jobs.items()}
        fast, slow = sorted(trained, key=lambda name: -trained[name].steps)
        steps = trained[slow].steps
        if trained[fast].steps == steps:
            return trained, trained
        run = folder / "equal-steps"
        job = pool.submit(_train_and_evaluate, fast, run, None, steps, seed, threads)
        _watch(f"{fast}, for {steps:,} steps", [run], [job], seconds)
        return trained, {fast: job.result(), slow: trained[slow]}


def _watch(what: str, runs: Sequence[Path], jobs: Sequence[Future], seconds: float) -> None:
    """Show the progress of trainings in other processes until they end; without a terminal, only print what is done."""
    if not sys.stderr.isatty():
        print(f"training and evaluating {what}", flush=True)
        wait(jobs)
        return
    began = time.perf_counter()
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {postfix}"
    with tqdm(total=seconds + EVALUATION, bar_format=form, dynamic_ncols=True) as bar:
        while wait(jobs, timeout=0.5).not_done:
            passed = time.perf_counter() - began
            bar.n = min(passed, bar.total)
            bar.set_description_str("evaluating" if passed > seconds else "training", refresh=False)
            bar.set_postfix_str(f"{what}; steps: {', '.join(_steps(run) for run in runs)}")
        bar.n = bar.total
        bar.refresh()


def _steps(run: Path) -> str:
    """The last step in a run's training curve."""
    try:
        return (run / "metrics.csv").read_text().rstrip().rpartition("\n")[2].partition(",")[0]
    except OSError:
        return "0"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: several threads gain little for networks this small, and are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _slug(name: str) -> str:
    return name.split()[0].lower()


def _free(path: Path) -> Path:
    """The path if it does not exist, else the next free name, so that earlier results are kept."""
    candidate, n = path, 1
    while candidate.exists() and any(candidate.iterdir()):
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _train_and_evaluate(
    name: str, folder: Path, seconds: float | None, steps: int | None, seed: int, threads: int
) -> Trained:
    """Train one model in ``folder`` for a number of seconds or steps, and evaluate it on the test split."""
    logging.getLogger("ndm.training").propagate = False
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = Digits()
    training = TrainingOptions(learning_rate=RATE, weight_decay=0.01, ema=0.995, batch_size=128, keep="last")
    limits = TrainerOptions(
        max_steps=steps, max_time=seconds, patience=None, accelerator="cpu", val_check_interval=250
    )  # fmt: skip
    cpu, wall = time.process_time(), time.perf_counter()
    with redirect_stderr(io.StringIO()):  # two logs would mix in one terminal
        model = fit(MODELS[name](), data, folder, training, limits, seed=seed, progress=False)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    evaluation = evaluate(
        model, data, steps=STEPS, variances=COVARIANCES, seed=seed, progress=False,
        likelihood_examples=100, divergence="hutchinson", probes=2, samples=2,
    )  # fmt: skip
    evaluation.save(folder / "evaluation.json")
    return Trained(read_checkpoint(Run(folder).last)["global_step"], cpu / threads, wall, evaluation)


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
    models: dict[str, ndm.NDM], trained: dict[str, Trained], again: dict[str, Trained], seconds: float, total: float
) -> str:
    steps = min(one.steps for one in trained.values())
    lines = [
        "# Handwritten digits: a conventional diffusion model and an NDM",
        "",
        "Test split of scikit-learn's digits (250 images of 8x8 pixels, 17 levels), bits per dimension (lower is",
        "better) ± standard error over the images, one seed.",
        "",
        f"After equal times, {seconds:.0f} seconds of training each:",
        "",
        *_table({name: one.evaluation for name, one in trained.items()}),
        *_figures(models, trained),
        "",
        f"After equal numbers of steps, {steps:,} each:",
        "",
        *_table({name: again[name].evaluation for name in MODELS}),
        "",
        *_findings(trained[BASELINE].evaluation, trained[NEURAL].evaluation),
        *_comparable(trained),
        "",
        _environment(total),
    ]
    return "\n".join(lines) + "\n"


def _table(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The results of both models side by side, in Markdown."""
    first, second = evaluations[BASELINE], evaluations[NEURAL]
    lines = ["| | " + " | ".join(MODELS) + " | difference, paired |", "|---|" + "---|" * (len(MODELS) + 1)]
    for i, row in enumerate(first.rows):
        values = [f"{e.rows[i]['value']:.3f} ± {e.rows[i]['stderr']:.3f}" for e in (first, second)]
        lines.append(f"| {_label(row)} | {values[0]} | {values[1]} | {_difference(first, second, i)[0]} |")
    return lines


def _figures(models: dict[str, ndm.NDM], trained: dict[str, Trained]) -> list[str]:
    """Further properties of both models, as rows of the table."""
    figures = {
        "parameters": [f"{_parameters(models[n]):,}" for n in MODELS],
        "of which in F": [f"{_parameters(models[n].transform):,}" for n in MODELS],
        "training steps": [f"{trained[n].steps:,}" for n in MODELS],
        "milliseconds a training step": [f"{1000 * trained[n].wall / trained[n].steps:.1f}" for n in MODELS],
        "share of a core in training": [f"{trained[n].share:.0%}" for n in MODELS],
        "gamma_0 and gamma_1, learned": ["{:.2f}, {:.2f}".format(*models[n].schedule.end_points()) for n in MODELS],
    }
    return [f"| {label} | {' | '.join(values)} | |" for label, values in figures.items()]


def _comparable(trained: dict[str, Trained]) -> list[str]:
    """A warning if other processes took time from the training runs."""
    if all(one.share >= UNDISTURBED for one in trained.values()):
        return []
    shares = " and ".join(f"{trained[name].share:.0%}" for name in MODELS)
    said = (
        f"- The machine was busy: the trainings had {shares} of a core. The comparison after equal times is not to be"
    )
    return [f"{said} relied on; that after equal steps is not affected."]


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
    """A summary of the results; differences below two standard errors are not counted."""
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
