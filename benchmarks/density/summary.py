"""What was found, as JSON objects and as a table in Markdown."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench import RESULTS, table

from density.cells import Cells, Facts, over_rows

#: The order of the sets, and the methods of which the better one is the reference.
SETS, OTHERS = ("stock", "skillcraft", "magic", "protein"), ("nsf", "gmm")


def paired(differences: np.ndarray) -> tuple[float, float]:
    """The mean of differences, (seeds, rows), and its error over rows and seeds; rows without a number are left out."""
    known = differences[:, ~np.isnan(differences).any(0)]
    each, seeds = known.mean(0), known.mean(1)
    error = each.var(ddof=1) / len(each) + (seeds.var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0)
    return float(known.mean()), math.sqrt(error)


def lines(scratch: Path) -> list[Facts]:
    """The cells, and each method's differences from the better of the others on the same seeds, as JSON objects."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    cells_of, pairs = [], []
    for folder in sorted(path for path in scratch.iterdir() if path.is_dir()):
        cells = Cells(scratch, folder.name)
        for key in cells.finished():
            facts, rows = cells.read(key)
            name, seed = key.rsplit("-", 1)
            test = rows["test"]
            found.setdefault(name, {}).setdefault(folder.name, {})[int(seed)] = test
            mean, error = over_rows(test)
            line = {"set": name, "method": folder.name, "seed": int(seed), "mean": mean, "stderr": error}
            line |= {"rows": len(test), "unsolved": int(np.isnan(test).sum())}
            if "bound" in rows:
                line["bound"], line["bound_stderr"] = over_rows(rows["bound"])
            cells_of.append(line | facts)
    for name, methods in found.items():
        overall = {m: np.mean([np.nanmean(x) for x in methods[m].values()]) for m in OTHERS if m in methods}
        if not overall:
            continue
        reference = max(overall, key=lambda m: overall[m])
        for method in methods.keys() - {reference}:
            seeds = sorted(methods[method].keys() & methods[reference].keys())
            if not seeds:
                continue
            apart = np.stack([methods[method][s] - methods[reference][s] for s in seeds])
            line = {"set": name, "method": method, "against": reference, "seeds": seeds}
            line["each"] = [over_rows(x) for x in apart]
            line["difference"], line["difference_stderr"] = paired(apart)
            pairs.append(line)
    order = [*SETS, *sorted(found.keys() - set(SETS))]
    return sorted(cells_of + pairs, key=lambda li: (order.index(li["set"]), "against" in li, li["method"]))


def markdown(found: Sequence[Facts]) -> str:
    """The table of the summary, from its lines."""
    shown = []
    cells = [one for one in found if "seed" in one]
    pairs = {(one["set"], one["method"]): one for one in found if "against" in one}
    for (name, method), group in itertools.groupby(cells, lambda one: (one["set"], one["method"])):
        of = list(group)
        bounds = [one["bound"] for one in of if "bound" in one]
        pair = pairs.get((name, method))
        reference = "reference" if method in OTHERS else ""
        seconds = [one["seconds"] for one in of]
        shown.append([
            name, method, len(of),
            over_seeds([one["mean"] for one in of], [one["stderr"] for one in of]),
            f"{np.mean(bounds):.2f}" if bounds else "",
            f"{pair['difference']:+.2f} ± {pair['difference_stderr']:.2f}" if pair else reference,
            " / ".join(f"{one['steps']:,}" for one in of),
            span([s["fit"] for s in seconds]), span([s["all"] for s in seconds]),
            sum(one["unsolved"] for one in of), "/".join("yes" if one.get("capped") else "" for one in of).strip("/"),
        ])  # fmt: skip
    header = ["set", "method", "seeds", "log p", "bound", "difference", "steps", "seconds, fit", "seconds, all",
              "unsolved rows", "capped"]  # fmt: skip
    return table(shown, header)


def over_seeds(means: Sequence[float], errors: Sequence[float]) -> str:
    """The mean over seeds, with the root of the seeds' variance / S and the mean square of the error over rows."""
    spread = np.var(means, ddof=1) / len(means) if len(means) > 1 else 0.0
    return f"{np.mean(means):.2f} ± {math.sqrt(spread + np.mean(np.square(errors))):.2f}"


def span(values: Sequence[float]) -> str:
    low, high = round(min(values)), round(max(values))
    return f"{low}" if low == high else f"{low} to {high}"


def read_results(path: Path = RESULTS / "tables.jsonl") -> list[Facts]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def section(found: Sequence[Facts]) -> str:
    """The section of the benchmarks' README."""
    here, measured = found[0]["environment"], [one for one in found if "seed" in one]
    commits = {one["method"]: one["commit"] for one in measured if "commit" in one}
    sources = ", ".join(f"{name} is commit {commit}" for name, commit in commits.items())
    above = (
        "`ndm train table --data.path SET`, scored by `ndm score`, beside zuko's neural spline flow (nsf) and "
        'scikit-learn\'s GaussianMixture (gmm), both chosen by validation. "log p" is the mean log-likelihood of the '
        "test split in nats per row and the units of the file, for ndm by the ODE; the bound is ndm's own. Differences "
        "are from the better of nsf and gmm, paired by row and seed. Seconds are of one core: of the training, and "
        "with the choice of the settings (nsf, gmm) or the scoring (ndm). A capped fit had to end at 400 seconds. "
        f"{sources.capitalize()}."
    )
    below = (
        "The tables are from the UCI repository. How each method was chosen and how errors combine is in "
        f"`benchmarks/tables.py`. `{here['command']}`, {here['date']}, PyTorch {here['torch']}, {here['machine']} with "
        f"{here['cores']} cores, {here['threads']} thread."
    )
    return f"## A table with nothing but its path\n\n{above}\n\n{markdown(found)}\n\n{below}\n"
