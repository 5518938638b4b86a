"""Samples of the models of a row, drawn in several ways, and how far they are from the test split.

The weights are those that a row's run has left in the work folder, at the end of the equal times. Drawn are, with each
number of steps T:

* ancestral samples with the reverse variances ``posterior``, ``isotropic`` and ``diagonal``, the latter two calibrated
  as for the bounds, and the model's own where that is another one;
* ``ddim``, eta = 0;
* ``ode``: Heun's method in T / 2 steps, rounded down, of two evaluations each;
* where suite.yaml says so, ``diagonal``, ``ddim`` and ``ode`` in steps that are even in gamma, and not in time.

A direct reverse process has neither DDIM nor an ODE: both need F(x_hat), which it does not estimate. All models and
ways of a seed start from the same noise.

Vectors are judged by their sliced Wasserstein distance and their MMD^2 from the test split, images by the Fréchet
distance of a classifier's features. As many training examples in the samples' place, the *floor*, show what can be told
at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from bench import environment
from torch import Tensor, nn

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data
from ndm.evaluation import own_variance
from ndm.evaluation.distances import jackknife, mmd, sliced_wasserstein
from ndm.method.variances import PosteriorVariance, ReverseVariance
from suite import jobs
from suite.afterwards import Afterwards, each, weights_of
from suite.classifier import Classifier, classifier
from suite.jobs import Trained
from suite.measuring import CALIBRATION, calibrated
from suite.settings import Row, Samples

#: Samples that are drawn at a time.
BLOCK = 250

#: Groups that are left out for the error of a Fréchet distance.
GROUPS = 20

#: Seed of the directions of the sliced Wasserstein distance: the same for every figure.
DIRECTIONS = 0

#: A figure and its standard error.
Figure = tuple[float, float]


class Sampling(Afterwards):
    """The samples of one model of a row, with one seed."""

    kind = "samples"


def run(
    row: Row,
    seed: int,
    data: Data,
    samples: Samples,
    results: Path,
    work: Path,
    redo: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Draw and judge the samples of a row and seed, as far as that is not done.

    Args:
        row: the row, tuned.
        seed: of the training, and of the samples.
        data: the row's data.
        samples: how many, and with how many steps.
        results: where the results go, in a folder of their own.
        work: where the weights are.
        redo: make results of other settings again.
        say: what is told of the progress.

    Raises:
        ValueError: there are results of other settings, and they are not to be made again.
    """
    trained = weights_of(row, seed, results, work, say)
    if trained is None:
        return
    steps, n = samples.of(row.data)
    features: dict[str, Any] = {}
    if data.levels is None:
        judge: Judge = Vectors(data, n)
    else:
        net, features = classifier(row.data, data, work, say)
        judge = Images(data, n, net)
    how = {"steps": list(steps), "examples": n, "features": features}
    if row.data in samples.gamma:
        how["gamma"] = True
    for job in each(Sampling, row, seed, results, trained, how):
        where = f"{row.name}, seed {seed}, {job.entry.name}"
        if not redo:
            job.refuse_other_settings()
        if job.state == "done":
            say(f"{where}: samples done before")
            continue
        result = sampled(job, data, trained, judge)
        jobs.write_json(job.file, result)
        say(f"{where}: samples/{job.file.name}, {result['facts']['seconds']:.0f} seconds")


def sampled(job: Afterwards, data: Data, trained: Trained, judge: Judge) -> dict[str, Any]:
    """What a sampling job finds."""
    began, facts, model = time.process_time(), trained.facts[job.entry.name], job.model(data, trained)
    figures = []
    how = job.how
    for about, x in drawn(model, job.row, data, how["steps"], how["examples"], job.seed, how.get("gamma", False)):
        figures.append(about | {"distances": _rounded(judge(x)) if torch.isfinite(x).all() else None})
    rest = {
        "parameters": facts["parameters"],
        "steps": facts["steps"],
        "compared_with": judge.compared_with,
        "floor": _rounded(judge.floor()),
        "left_out": [] if has_ode(model) else ["ddim", "ode"],
        "seconds": round(time.process_time() - began, 1),
    }
    return {"environment": environment(), "settings": job.settings, "facts": rest, "figures": figures}


# ---- drawing


def has_ode(model: ndm.NDM) -> bool:
    """Whether the model estimates F(x_hat), and not only what its own reverse process needs."""
    return not model.denoiser.direct or bool(getattr(model.denoiser, "ode", False))


def drawn(
    model: ndm.NDM, row: Row, data: Data, steps: Sequence[int], n: int, seed: int, gamma: bool = False
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Samples in every way, (N, \\*shape), and how they were drawn: the ``method``, its ``steps``, the ``evaluations``
    of the denoiser's network for a sample, and the ``seconds`` of all of them. With ``gamma`` also in steps that are
    even in gamma.
    """
    own = model.reverse_variance
    for t in steps:
        variances: dict[str, ReverseVariance] = {"posterior": PosteriorVariance()}
        with suppress(ValueError):  # a model that has diverged cannot be calibrated
            variances |= calibrated(model, data.examples("train"), t, row.calibration)
        variances[own_variance(model)] = own
        try:
            for name, variance in variances.items():
                model.reverse_variance = variance
                yield _drawn(name, t, model, data, n, seed, method="ancestral", steps=t)
        finally:
            model.reverse_variance = own
        if has_ode(model):
            yield _drawn("ddim", t, model, data, n, seed, method="ddim", steps=t)
            yield _drawn("ode", t, model, data, n, seed, method="ode", solver="heun", steps=t // 2)
        if gamma:
            yield from _even_in_gamma(t, model, row, data, n, seed)


def _even_in_gamma(
    t: int, model: ndm.NDM, row: Row, data: Data, n: int, seed: int
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    some = data.examples("train")[: max(1, row.calibration // t)].split(BLOCK)
    generator = torch.Generator().manual_seed(seed_of(CALIBRATION, t))
    with suppress(ValueError):  # as above
        model.calibrate(some, t, "diagonal", grid="gamma", generator=generator)
    if model.calibrated(t):
        try:
            yield _drawn("diagonal, in gamma", t, model, data, n, seed, method="ancestral", steps=t)
        finally:
            model.uncalibrate(t)
    if has_ode(model):
        options: dict[str, Any] = {"spacing": "gamma"}
        yield _drawn("ddim, in gamma", t, model, data, n, seed, method="ddim", steps=t, **options)
        yield _drawn("ode, in gamma", t, model, data, n, seed, method="ode", solver="heun", steps=t // 2, **options)


def _drawn(
    name: str, t: int, model: ndm.NDM, data: Data, n: int, seed: int, spacing: str = "time", **options: Any
) -> tuple[dict[str, Any], Tensor]:
    began = time.process_time()
    with _counted(model.denoiser.net) as calls:
        options |= {"batch_size": BLOCK, "progress": False, "spacing": spacing}
        blocks = ndm.sample_batches(model, n, data.shape, seed=seed, **options)
        x = torch.cat([block for _, block in blocks])
    seconds, evaluations = time.process_time() - began, len(calls) // -(-n // BLOCK)
    return {"method": name, "steps": t, "evaluations": evaluations, "seconds": round(seconds, 2)}, x


@contextmanager
def _counted(net: nn.Module) -> Iterator[list[None]]:
    """A list that has an entry more whenever the network is called."""
    calls: list[None] = []
    handle = net.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


# ---- judging


class Judge:
    """Tells how far samples are from the test split.

    Attributes:
        compared_with: how many examples of the test split they are compared with.
    """

    compared_with: int

    def __call__(self, x: Tensor) -> dict[str, Figure]:
        """Each distance and its standard error."""
        raise NotImplementedError

    def floor(self) -> dict[str, Figure]:
        """The same of as many examples of the training split."""
        raise NotImplementedError


class Vectors(Judge):
    """In standard deviations of the training split, lest a column in small units count for nothing."""

    def __init__(self, data: Data, n: int) -> None:
        train = data.train.double()
        self.mean, self.scale, self.train = train.mean(0), train.std(0), train[:n]
        self.test = self._standard(data.test[:n])
        self.compared_with = len(self.test)

    def _standard(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) / self.scale

    def __call__(self, x: Tensor) -> dict[str, Figure]:
        y, generator = self._standard(x), torch.Generator().manual_seed(DIRECTIONS)
        sliced = sliced_wasserstein(self.test, y, permutations=0, generator=generator)
        kernel = mmd(self.test, y, permutations=0)
        return {"sliced Wasserstein": (sliced.value, sliced.stderr), "MMD²": (kernel.value, kernel.stderr)}

    def floor(self) -> dict[str, Figure]:
        return self(self.train)


class Images(Judge):
    """By the features of a classifier: torchmetrics' Fréchet distance, and its error by leaving groups out."""

    def __init__(self, data: Data, n: int, net: Classifier) -> None:
        self.net = net
        self.train, self.test = (net.features_of(data.examples(name)[:n]) for name in ("train", "test"))
        self.compared_with = len(self.test)

    def __call__(self, x: Tensor) -> dict[str, Figure]:
        return self._of(self.net.features_of(x))

    def floor(self) -> dict[str, Figure]:
        return self._of(self.train)

    def _of(self, features: Tensor) -> dict[str, Figure]:
        left_out = [_frechet(_without(self.test, g), _without(features, g)) for g in range(GROUPS)]
        return {"FID": (_frechet(self.test, features), jackknife(torch.tensor(left_out, dtype=torch.float64)))}


def _without(rows: Tensor, group: int) -> Tensor:
    return rows[torch.arange(len(rows)) % GROUPS != group]


def _frechet(a: Tensor, b: Tensor) -> float:
    from ndm.evaluation.quality import fid_kid  # it needs torchmetrics

    # The features are there: nothing is left for a network to do. The other distance is made as short as can be.
    return fid_kid([a], [b], nn.Identity(), kid_subsets=1, kid_subset_size=2).fid


def _rounded(found: Mapping[str, Figure]) -> dict[str, list[float]]:
    return {name: [float(f"{v:.5g}") for v in figure] for name, figure in found.items()}
