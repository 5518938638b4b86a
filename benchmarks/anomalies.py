"""Detection of anomalies: ROC-AUC of the bound, of the ODE likelihood, and of other detectors.

Digits: one class at a time is held out of training and validation; inliers are the test images of the nine others,
outliers all images of the held-out one. The shipped configurations `digits` and `digits-identity`.
Table: the mixture of `score.py`, clean and with 2% of outliers among the training rows. The configuration
`table-identity`, and the same with a Separable of four terms (`configs/table-separable.yaml`). Outliers are `uniform`
in the box of the clean rows; `swapped`, with one column of another row, so that only the dependence is broken; or
`shifted`, with one column moved by half of its standard deviation. The true log-density is scored as well.

Every detector gets the same rows on the same scale: a table's columns standardised by the training rows, digits as they
are. NDM and Identity are trained for equal CPU seconds of one core, by the time of a step, and scored by
`ndm.scoring.score`. The others are scikit-learn's: IsolationForest and LocalOutlierFactor with their defaults, and
GaussianMixture with the covariance and the number of components of the highest validation likelihood; for it, noise of
a level's width is added to digits. Errors of an AUC and of a difference between two on the same rows are DeLong's
(1988). The results are written after each part, and the same command goes on after an interruption.

    python benchmarks/anomalies.py [--seconds 60] [--seeds 0 1 2] [--digits 0 1 2] [--out FILE] [--tiny]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import RESULTS, environment, parameters, read, seconds_per_step, table
from bench import write as write_lines
from score import Mixture, write
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ndm.configs.configuration import Built, Configuration
from ndm.data import Digits
from ndm.scoring import score
from ndm.training import fit

MODELS = ("Identity", "NDM")
TRAININGS = {"clean": 0.0, "2% outliers": 0.02}
KINDS = ("uniform", "swapped", "shifted")

#: The NDM of tables.
TABLE = str(Path(__file__).parent / "configs" / "table-separable.yaml")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the figures depend on; what is in the results must be of the same."""

    seconds: float = 60.0
    train: int = 20_000
    validation: int = 2_000
    inliers: int = 1_000
    outliers: int = 400
    components: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 32)
    times: int = 20
    samples: int = 2
    probes: int = 2
    tolerance: float | None = None
    batch_size: int = 250
    timed_steps: int = 20

    def scoring(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("times", "samples", "probes", "tolerance", "batch_size")}


TINY = Settings(
    seconds=0.3, train=300, validation=50, inliers=40, outliers=20, components=(1, 2),
    times=2, samples=1, probes=1, tolerance=1.0, timed_steps=2,
)  # fmt: skip


class Without(Digits):
    """The digits without those of one class."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out

    def _split(self, name: str) -> tuple[Tensor, Tensor | None]:
        x, labels = super()._split(name)
        assert labels is not None
        return x[labels != self.held_out], labels[labels != self.held_out]

    def outliers(self) -> Tensor:
        """All images of the held-out class, (n, 1, 8, 8)."""
        splits = [Digits._split(self, name) for name in ("train", "validation", "test")]
        return torch.cat([x[labels == self.held_out] for x, labels in splits if labels is not None])


def outliers(kind: str, rows: np.ndarray, others: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows, (n, d), made outliers of a kind; ``others`` are clean rows, (m, d), that say what is usual."""
    n, d = rows.shape
    column, each = random.integers(0, d, n), np.arange(n)
    if kind == "uniform":
        return random.uniform(others.min(0), others.max(0), (n, d))
    found = rows.copy()
    if kind == "swapped":
        found[each, column] = others[random.integers(0, len(others), n), column]
    else:
        found[each, column] += random.choice([-0.5, 0.5], n) * others.std(0)[column]
    return found


def contaminated(mixture: Mixture, n: int, share: float, seed: int) -> np.ndarray:
    """n rows of the mixture, of which a share are outliers, as many of each kind, (n, d)."""
    rows = mixture.sample(n, seed)
    random, clean = np.random.default_rng(seed), rows.copy()
    for part, kind in zip(np.array_split(random.permutation(n)[: round(share * n)], len(KINDS)), KINDS, strict=True):
        rows[part] = outliers(kind, clean[part], clean, random)
    return rows


def placements(inliers: np.ndarray, outliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each outlier the share of inliers with a lower score, and for each inlier of outliers with a higher one;
    equal scores count half."""
    above = (outliers[:, None] > inliers).astype(float) + 0.5 * (outliers[:, None] == inliers)
    return above.mean(1), above.mean(0)


def area(v: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The area under the ROC curve and its standard error, from placements or from the difference of two."""
    return v[0].mean(), math.sqrt(sum(part.var(ddof=1) / len(part) for part in v))


def measured(scores: dict[str, np.ndarray], inlier: np.ndarray, outlier: np.ndarray) -> list[dict[str, Any]]:
    """A row for each detector, whose scores are high for what is unusual; of NDM's, the difference from Identity's."""
    placed = {name: placements(values[inlier], values[outlier]) for name, values in scores.items()}
    rows = []
    for name, v in placed.items():
        (auc, error), usual = area(v), scores[name][inlier]
        row = {"method": name, "auc": auc, "stderr": error, "inlier_mean": usual[np.isfinite(usual)].mean()}
        if name.startswith("NDM"):
            other = placed[name.replace("NDM", "Identity")]
            row["difference"], row["difference_stderr"] = area((v[0] - other[0], v[1] - other[1]))
        rows.append(row)
    return rows


def built(name: str, data: str, seed: int, path: Path | None = None) -> Built:
    """A model and its data, by the configurations that the docstring above names."""
    options = [f"--seed={seed}", "--trainer.accelerator=cpu"] + [f"--data.path={path}"] * (data == "table")
    ours = {"digits": "digits", "table": TABLE}[data]
    return Configuration.read(ours if name == "NDM" else f"{data}-identity", options).build()


def likelihoods(
    name: str, one: Built, x: Tensor, steps: int, settings: Settings, here: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The bound and the negative log-likelihood of x under a model trained for so many steps, and about the model."""
    trainer = dataclasses.replace(one.trainer, max_steps=steps, val_check_interval=steps)
    began = time.process_time()
    model = fit(one.model, one.data, here / name, one.training, trainer, seed=one.seed, progress=False)
    trained = time.process_time() - began
    found = score(model, x, here / f"{name}.csv", seed=one.seed, progress=False, **settings.scoring())
    scores = pandas.read_csv(found.path)
    values = {f"{name}, bound": scores["nelbo"], f"{name}, ODE likelihood": -scores["log_prob"]}
    about = {"steps": steps, "parameters": parameters(model), "unsolved": found.about["log_prob"]["unsolved"]}
    about |= {"cpu_seconds_of_training": trained, "cpu_seconds": time.process_time() - began}
    # What could not be solved is as unusual as can be.
    return {key: np.nan_to_num(value.to_numpy(), nan=math.inf) for key, value in values.items()}, about


def others(train: np.ndarray, validation: np.ndarray, x: np.ndarray, noise: float, settings: Settings, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:  # fmt: skip
    """scikit-learn's detectors; ``noise`` is the width of the noise that the mixture of Gaussians needs."""
    random = np.random.default_rng(seed)

    def noisy(rows: np.ndarray) -> np.ndarray:
        return rows + noise * random.uniform(-0.5, 0.5, rows.shape)

    x_train, x_validation = noisy(train), noisy(validation)
    mixtures = (
        GaussianMixture(count, covariance_type=kind, reg_covar=1e-4, random_state=seed).fit(x_train)
        for kind in ("diag", "full") for count in settings.components
    )  # fmt: skip
    chosen = max(mixtures, key=lambda mixture: mixture.score(x_validation))
    draws = np.mean([chosen.score_samples(noisy(x)) for _ in range(8 if noise else 1)], 0)
    forest = IsolationForest(random_state=seed).fit(train)
    neighbours = LocalOutlierFactor(novelty=True).fit(train)
    scores = {"IsolationForest": -forest.score_samples(x), "LocalOutlierFactor": -neighbours.score_samples(x)}
    return {"GaussianMixture": -draws} | scores, {"mixture": f"{chosen.n_components} {chosen.covariance_type}"}


def digits_part(digit: int, steps: dict[str, int], settings: Settings) -> list[dict[str, Any]]:
    data = Without(digit)
    x = torch.cat([data.test, data.outliers()])
    inlier = np.arange(len(x)) < len(data.test)
    scores, about = others(*(v.flatten(1).double().numpy() for v in (data.train, data.validation, x)), 2 / 17,
                           settings, seed=digit)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            one = dataclasses.replace(built(name, "digits", digit), data=data)
            found, about[name] = likelihoods(name, one, x, steps[name], settings, Path(folder))
            scores |= found
    where = {"data": "digits", "held_out": digit, "inliers": int(inlier.sum()), "outliers": int((~inlier).sum())}
    return [where | row | {"about": about} for row in measured(scores, inlier, ~inlier)]


def table_part(training: str, seed: int, steps: dict[str, int], settings: Settings) -> list[dict[str, Any]]:
    mixture, random = Mixture(), np.random.default_rng(1000 + seed)
    splits = {
        split: contaminated(mixture, n, TRAININGS[training], seed=10 * seed + i)
        for i, (split, n) in enumerate({"train": settings.train, "validation": settings.validation}.items())
    }
    clean = mixture.sample(settings.inliers, 10 * seed + 2)
    fresh = np.split(mixture.sample(len(KINDS) * settings.outliers, 10 * seed + 3), len(KINDS))
    usual = mixture.sample(settings.train, 10 * seed)  # the clean rows, whichever the training has
    x = np.concatenate([clean, *(outliers(k, rows, usual, random) for k, rows in zip(KINDS, fresh, strict=True))])
    kinds = np.repeat(["", *KINDS], [len(clean)] + [settings.outliers] * len(KINDS))
    scaler = StandardScaler().fit(splits["train"])
    scores, about = others(*map(scaler.transform, (splits["train"], splits["validation"], x)), 0.0, settings, seed)
    scores = {"true density": -mixture.log_prob(x)} | scores
    with tempfile.TemporaryDirectory() as folder:
        path = table_files(splits, Path(folder) / "data")
        for name in MODELS:
            one = built(name, "table", seed, path)
            values = torch.from_numpy(x.astype(np.float32))
            found, about[name] = likelihoods(name, one, values, steps[name], settings, Path(folder))
            scores |= found
    rows = []
    for kind in KINDS:
        where = {"data": "table", "training": training, "seed": seed, "kind": kind}
        where |= {"inliers": settings.inliers, "outliers": settings.outliers}
        rows += [where | row | {"about": about} for row in measured(scores, kinds == "", kinds == kind)]
    return rows


def table_files(splits: dict[str, np.ndarray], folder: Path) -> Path:
    """The splits as CSV files of their names; two training rows are the test split."""
    folder.mkdir()
    for split, rows in {**splits, "test": splits["train"][:2]}.items():
        write(rows, folder / f"{split}.csv")
    return folder


def pace(settings: Settings) -> dict[str, Any]:
    """How many steps of each model take the seconds, by data and model."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        splits = {name: Mixture().sample(1000, i) for i, name in enumerate(("train", "validation"))}
        path = table_files(splits, Path(folder) / "data")
        for data in ("digits", "table"):
            each = {name: built(name, data, 0, path) for name in MODELS}
            models = {name: (one.model, one.data, one.training.batch_size) for name, one in each.items()}
            found[data] = {
                name: {"seconds_a_step": s, "steps": max(2, round(settings.seconds / s))}
                for name, s in seconds_per_step(models, settings.timed_steps).items()
            }
    return found


class Results:
    """The file of results, which is replaced as a whole after each part. Its first line has the settings."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(dataclasses.asdict(settings))) | {"pace": None}
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            first, *self.rows = read(path.stem, path.parent)
            if {**first["settings"], "pace": None} != self.settings:
                raise SystemExit(f"{path} is of other settings: move it away, or choose another --out.")
            self.settings = first["settings"]

    def keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        write_lines(self.path, [{"environment": environment(), "settings": self.settings}, *self.rows])


def parts(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The parts, so ordered that there is something of each kind early."""
    for seed in options.seeds:
        yield from ({"data": "table", "training": training, "seed": seed} for training in TRAININGS)
        if seed == options.seeds[0]:
            yield from ({"data": "digits", "held_out": digit} for digit in options.digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each model (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the tables (default: 0)")
    parser.add_argument("--digits", type=int, nargs="*", default=list(range(10)), help="the classes to hold out")
    parser.add_argument("--out", type=Path, default=RESULTS / "anomalies.jsonl", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small and meaningless, to see that it runs")
    options = parser.parse_args()
    if options.tiny and options.out.parent == RESULTS:
        parser.error("--tiny is not for the results: give another --out")
    torch.set_num_threads(1)
    logging.getLogger("ndm").setLevel(logging.WARNING)
    settings = TINY if options.tiny else Settings(seconds=options.seconds)
    results = Results(options.out, settings)
    if results.settings["pace"] is None:
        results.settings["pace"] = pace(settings)
        results.keep([])
    for where in parts(options):
        if any(all(row.get(k) == v for k, v in where.items()) for row in results.rows):
            continue
        data, *rest = where.values()
        part = digits_part if data == "digits" else table_part
        steps = {name: one["steps"] for name, one in results.settings["pace"][data].items()}
        rows = part(*rest, steps, settings)
        results.keep(rows)
        shown = [[r.get("kind", ""), r["method"], f"{r['auc']:.3f} ± {r['stderr']:.3f}"] for r in rows]
        print(f"{where}\n{table(shown, ['outliers', 'detector', 'AUC'])}\n", flush=True)
    print(f"the figures are in {options.out}")


if __name__ == "__main__":
    main()
