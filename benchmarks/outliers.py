"""Anomalies in real tables of ADBench: the likelihood of ``ndm.tabular.TabularNDM`` and other detectors.

    python benchmarks/outliers.py --data DATA [--seconds 60] [--seeds 0 1 2]

DATA holds a folder for each set with train.parquet and validation.parquet, which hold outliers, test.parquet, and
test-labels.parquet, 1 for an outlier. ``kinds`` is TabularNDM as it comes, which finds columns of few values and
recurring values; ``real`` takes every column for real. Their score is minus the log-likelihood. The others are
scikit-learn's IsolationForest and LocalOutlierFactor with their defaults, and a GaussianMixture with the number of
components of the highest validation likelihood, on standardised columns. Errors are the standard deviation over 1,000
bootstrap samples of the test rows. Lines of results/outliers.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from bench import RESULTS, environment, write
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

from ndm.tabular import TabularNDM

SETS, DRAWS = ("vowels", "cardio"), 1000


def by_ndm(splits: dict[str, pandas.DataFrame], seed: int, seconds: float, real: bool) -> np.ndarray:
    together = pandas.concat([splits["train"], splits["validation"]])
    kinds = dict.fromkeys(together.columns, "real") if real else None
    share = len(splits["validation"]) / len(together)
    model = TabularNDM(kinds=kinds, validation=share, random_state=seed, max_time=seconds).fit(together)
    return model.decision_function(splits["test"])


def others(splits: dict[str, pandas.DataFrame], seed: int) -> dict[str, np.ndarray]:
    mean, scale = splits["train"].mean(), splits["train"].std().replace(0, 1)
    train, held, test = (((splits[s] - mean) / scale).to_numpy() for s in ("train", "validation", "test"))
    mixtures = [GaussianMixture(k, reg_covar=1e-3, random_state=seed).fit(train) for k in (1, 2, 4, 8, 16)]
    mixture = max(mixtures, key=lambda one: one.score(held))
    return {
        "forest": -IsolationForest(random_state=seed).fit(train).score_samples(test),
        "lof": -LocalOutlierFactor(novelty=True).fit(train).score_samples(test),
        "mixture": -mixture.score_samples(test),
    }


def measured(score: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    score, random = np.nan_to_num(score, nan=np.inf, posinf=1e300), np.random.RandomState(0)
    draws = [random.randint(len(label), size=len(label)) for _ in range(DRAWS)]
    draws = [rows for rows in draws if 0 < label[rows].sum() < len(rows)]
    line: dict[str, Any] = {}
    for name, measure in (("auc", roc_auc_score), ("ap", average_precision_score)):
        line[name] = float(measure(label, score))
        line[f"{name}_stderr"] = float(np.std([measure(label[rows], score[rows]) for rows in draws]))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # so that trainer.max_time counts CPU seconds
    lines: list[dict[str, Any]] = [{"environment": environment(), "settings": {"seconds": options.seconds}}]
    for name in SETS:
        folder = options.data / name
        splits = {s: pandas.read_parquet(folder / f"{s}.parquet") for s in ("train", "validation", "test")}
        label = pandas.read_parquet(folder / "test-labels.parquet").iloc[:, 0].to_numpy()
        for seed in options.seeds:
            scores = others(splits, seed)
            for method in ("kinds", "real"):
                scores[method] = by_ndm(splits, seed, options.seconds, method == "real")
            for method, score in scores.items():
                lines.append({"set": name, "method": method, "seed": seed} | measured(score, label))
                print(lines[-1], flush=True)
    write(RESULTS / "outliers.jsonl", lines)


if __name__ == "__main__":
    main()
