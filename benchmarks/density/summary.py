"""The finished cells and their differences, as JSON objects."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

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
