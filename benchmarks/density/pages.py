"""The tables of docs/results-tables.md, from the lines of the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import bench

Line = dict[str, Any]

NAMES = {
    "ndm": "`table`", "identity": "`table`, Identity", "any": "`table`, conditionals",
    "whole": "`table`, no limit", "nsf": "spline flow (zuko)",
    "mixture": "mixture", "product": "product of columns", "fixed": "`table`, given", "flow": "conditional flow (zuko)",
    "linear": "linear, normal", "boosting": "quantile boosting", "iterative": "IterativeImputer",
    "median": "median, most frequent", "kinds": "TabularNDM", "real": "TabularNDM, all real",
    "forest": "IsolationForest", "lof": "LocalOutlierFactor",
}  # fmt: skip


def read(name: str) -> list[Line]:
    return bench.read(name)[1:]


def pm(value: float | None, error: float | None, digits: int = 2, sign: str = "") -> str:
    if value is None or error is None or math.isnan(value):
        return ""
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def over(lines: Sequence[Line], key: str, digits: int = 2) -> str:
    """The mean over seeds, and its error: the root of v / S + e^2 with the spread between seeds and the mean error."""
    known = [li for li in lines if li.get(key) is not None]
    if not known:
        return ""
    spread = statistics.variance([li[key] for li in known]) / len(known) if len(known) > 1 else 0.0
    error = math.sqrt(spread + statistics.mean(li[f"{key}_stderr"] ** 2 for li in known))
    return pm(statistics.mean(li[key] for li in known), error, digits)


def groups(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each set and method, in the order in which they come."""
    keys = list(dict.fromkeys((li["set"], li["method"]) for li in lines))
    return [[li for li in lines if (li["set"], li["method"]) == key] for key in keys]


def mixed() -> str:
    rows = []
    for li in read("mixed"):
        gap = "" if li["method"] == "ndm" else pm(li["minus_ndm"], li["minus_ndm_stderr"], 2, "+")
        rows.append([
            li["set"], NAMES[li["method"]], li["seeds"], pm(li["log_p"], li["stderr"]), gap, f"{li['seconds']:.0f}",
        ])  # fmt: skip
    return bench.table(rows, ["table", "model", "seeds", "log p, nats", "difference from `table`", "CPU s"])


def start() -> str:
    rows = []
    for li in read("start"):
        figures = pm(*li["none"]), pm(*li["mixture"]), pm(li["gain"], li["gain_stderr"], 2, "+")
        rows.append([li["set"], ", ".join(map(str, li["components"])), *figures, f"{li['median']:+.2f}"])
    return bench.table(rows, ["table", "components", "without, nats", "with a mixture, nats", "difference", "median"])


def conditionals() -> str:
    rows = [
        [
            of[0]["target"], NAMES[of[0]["method"]], over(of, "log_p"), over(of, "crps", 0), over(of, "coverage", 3),
            f"{statistics.mean(li['width'] for li in of):,.0f}", f"{statistics.mean(li['seconds'] for li in of):.0f}",
        ]
        for of in groups(read("conditionals"))
    ]  # fmt: skip
    header = ["target", "model", "log p, nats", "CRPS", "coverage of 90%", "width", "CPU s"]
    return bench.table(rows, header)


def imputation() -> str:
    rows = [
        [of[0]["set"], NAMES[of[0]["method"]], over(of, "mae", 3), over(of, "wrong", 3), over(of, "log_p", 3)]
        for of in groups(read("imputation"))
    ]
    return bench.table(rows, ["table", "method", "error of numbers", "wrong categories", "log p per cell, nats"])


def outliers() -> str:
    rows = [
        [of[0]["set"], NAMES[of[0]["method"]], len(of), over(of, "auc", 3), over(of, "ap", 3)]
        for of in groups(read("outliers"))
    ]
    return bench.table(rows, ["table", "detector", "seeds", "ROC-AUC", "average precision"])


def sampling() -> str:
    lines, rows = bench.read("steps"), []
    numbers = sorted({r["evaluations"] for li in lines for r in li["rows"] if "evaluations" in r})
    for li in lines:
        of, digits = {r["method"]: {} for r in li["rows"]}, 1 if li["rows"][0]["distance"] > 1 else 3
        for r in li["rows"]:
            of[r["method"]][r.get("evaluations")] = pm(r["distance"], r["stderr"], digits)
        name = f"{li['set']}, {li['samples']:,} samples"
        rows += [[name, way, *(known.get(n, "") for n in (None, *numbers))] for way, known in of.items()]
    return bench.table(rows, ["data", "sampler", "", *(f"{n} evaluations" for n in numbers)])


TABLES = {
    "mixed": mixed, "start": start, "conditionals": conditionals, "imputation": imputation, "outliers": outliers,
    "sampling": sampling,
}  # fmt: skip
