"""Print the tables of docs/results.md, docs/results-tables.md and docs/results-speed.md from the files in results/.

python benchmarks/summary.py [TABLE ...]
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import bench
from density.pages import TABLES as OF_TABLES
from suite.measuring import over_seeds

Line = dict[str, Any]
Figure = tuple[float, float]


def pm(figure: Figure | None, digits: int = 3, sign: str = "") -> str:
    """A figure and its standard error."""
    return "" if figure is None else f"{figure[0]:{sign}.{digits}f} ± {figure[1]:.{digits}f}"


def read(name: str) -> list[Line]:
    """The rows of a file, without its first line."""
    return bench.read(name)[1:]


def found(rows: Iterable[Line], **where: Any) -> list[Line]:
    return [row for row in rows if all(row.get(k) == v for k, v in where.items())]


def one(rows: Iterable[Line], **where: Any) -> Line:
    (row,) = found(rows, **where)
    return row


def values(rows: Iterable[Line], key: str) -> list[Any]:
    """The values of a key in the order in which they come."""
    return list(dict.fromkeys(row[key] for row in rows if key in row))


CONTINUOUS, EVEN, BEST = (None, "-"), (10, "diagonal"), (10, "diagonal, best steps")


def figure(
    lines: Sequence[Line], model: str, which: tuple[int | None, str], key: str = "value", at: str = "bounds"
) -> tuple[Figure, int] | None:
    """A bound of a model, or its difference from the reference's, over the seeds that have it, and their number."""
    error = "stderr" if key == "value" else "difference_stderr"
    rows = [b for li in lines for b in li["models"].get(model, {}).get(at, ()) if (b["steps"], b["variance"]) == which]
    return (over_seeds([(b[key], b[error]) for b in rows]), len(rows)) if rows else None


def shown(lines: Sequence[Line], *arguments: Any, sign: str = "") -> str:
    """As :func:`figure`, with the number of seeds where it is not that of the lines."""
    result = figure(lines, *arguments)
    if result is None:
        return ""
    few = f" ({result[1]} seed{'s' * (result[1] > 1)})" if result[1] != len(lines) else ""
    return pm(result[0], sign=sign) + few


def against_reference(*names: str) -> str:
    """The last model of each comparison against the reference."""
    rows = []
    for name in names:
        lines = found(bench.read("suite"), comparison=name)
        reference, *_, model = lines[0]["models"]
        seconds = lines[0]["budget"]["seconds"]
        row = [f"`{name}`", len(lines), f"{seconds:g} s", f"{lines[0]['models'][reference]['parameters']:,}"]
        for which in (CONTINUOUS, EVEN, BEST):
            row += [shown(lines, reference, which), shown(lines, model, which, "difference", sign="+")]
            if which == CONTINUOUS:
                row.append(shown(lines, model, which, "difference", "at_common_step", sign="+"))
        rows.append(row)
    header = ["comparison", "seeds", "each", "parameters", "continuous: Identity", "difference", "equal steps"]
    return bench.table(rows, [*header, "T = 10: Identity", "difference", "best T = 10: Identity", "difference"])


def models_of(name: str) -> str:
    """Every model of a comparison, and its differences from the reference."""
    lines, rows = found(bench.read("suite"), comparison=name), []
    reference = next(iter(lines[0]["models"]))
    for model, facts in lines[0]["models"].items():
        of = [li for li in lines if model in li["models"]]
        row = [model, f"{facts['parameters']:,}", f"{facts['parameters_in_f'] / facts['parameters']:.1%}"]
        row.append(" / ".join(f"{li['models'][model]['steps']:,}" for li in of))
        if model == reference:
            row += [shown(of, model, CONTINUOUS), "", shown(of, model, EVEN)]
        else:
            row.append(shown(of, model, CONTINUOUS, "difference", sign="+"))
            row.append(shown(of, model, CONTINUOUS, "difference", "at_common_step", sign="+"))
            row.append(shown(of, model, EVEN, "difference", sign="+"))
        rows.append(row)
    header = ["model", "parameters", "in F", "steps", "continuous", "continuous, equal steps", "T = 10"]
    return bench.table(rows, header)


def samples() -> str:
    lines, rows = bench.read("samples"), []
    for name in values(lines, "comparison"):
        here = found(lines, comparison=name)
        reference = next(iter(here[0]["models"]))
        for model in here[0]["models"]:
            for method in values(here[0]["models"][model], "method"):
                row = [f"`{name}`", model, method]
                for steps in (10, 50):
                    for spacing in ("time", "gamma"):
                        where = {"method": method, "spacing": spacing, "steps": steps}
                        fids = {m: [one(li["models"][m], **where)["fid"] for li in here] for m in (reference, model)}
                        row.append(pm(over_seeds(fids[model]), 1))
                    # of the steps that are even in gamma, paired by seed
                    pairs = [a[0] - b[0] for a, b in zip(fids[model], fids[reference], strict=True)]
                    row.append("" if model == reference else pm(bench.mean_and_error(pairs), 1, "+"))
                rows.append(row)
        rows.append([f"`{name}`", "training images", "", pm(over_seeds([li["floor"] for li in here]), 1), *[""] * 5])
    header = ["comparison", "model", "sampler"]
    for steps in (10, 50):
        header += [f"T = {steps}: even in time", "even in gamma", "difference"]
    return bench.table(rows, header)


def tables() -> str:
    lines, rows = read("tables"), []
    names = {"real": "ndm, real", "ndm": "ndm, numeric", "identity": "Identity, numeric", "nsf": "nsf", "gmm": "gmm"}
    for name, method in itertools.product(values(lines, "set"), names):
        if of := [li for li in found(lines, set=name, method=method) if "seed" in li]:
            pairs = [li for li in found(lines, set=name, method=method) if "against" in li]
            seconds = [round(li["seconds"]["fit"]) for li in of], [round(li["seconds"]["all"]) for li in of]
            rows.append([
                name, names[method], len(of), pm(over_seeds([(li["mean"], li["stderr"]) for li in of]), 2),
                pm((pairs[0]["difference"], pairs[0]["difference_stderr"]), 2, "+") if pairs else "reference",
                *(" to ".join(map(str, dict.fromkeys((min(s), max(s))))) for s in seconds),
                "yes" if any(li.get("capped") for li in of) else "",
            ])  # fmt: skip
    header = ["table", "method", "seeds", "log p, nats", "difference", "s of the fit", "s in all", "stopped at 400 s"]
    return bench.table(rows, header)


def score() -> str:
    rows = [
        [
            f"{r['tolerance']:g}", f"{r['rows_per_second']:.0f}", f"{r['correlation']:.3f}", f"{r['mean_error']:+.3f}",
            f"{r['mean_absolute_error']:.3f}", f"{r['solver_error']:.5f}", f"{r['largest_solver_error']:.4f}",
            f"{r['errors_within_stated']:.1%}",
        ]
        for r in read("score")
    ]  # fmt: skip
    header = ["tolerance, nats", "rows/s", "correlation", "mean error", "mean absolute error", "solver's error"]
    return bench.table(rows, [*header, "largest", "within the stated error"])


def many_rows() -> str:
    rows = []
    for r in bench.read("score")[0]["settings"]["many"]:
        row = [f"{r['rows']:,}", r["workers"], f"{r['seconds']:.0f}", f"{r['rows'] / r['seconds']:.0f}"]
        check = f"each row once: {_yes(r['each_once'])}; first rows equal: {_yes(r['same'])}" if "same" in r else ""
        rows.append([*row, f"{r['megabytes']:.0f}", f"{r['killed_after']:,}" if check else "", check])
    header = ["rows", "workers", "seconds", "rows/s", "MB of a process", "killed after rows", "check"]
    return bench.table(rows, header)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def anomalies_digits() -> str:
    lines = found(read("anomalies"), data="digits")
    rows = []
    for method in values(lines, "method"):
        areas = {li["held_out"]: li["auc"] for li in found(lines, method=method)}
        worst = min(areas, key=lambda digit: areas[digit])
        pairs = [li["difference"] for li in found(lines, method=method) if "difference" in li]
        row = [method, len(areas), pm(bench.mean_and_error(list(areas.values()))), f"{areas[worst]:.3f} ({worst})"]
        rows.append([*row, pm(bench.mean_and_error(pairs), sign="+") if pairs else ""])
    return bench.table(rows, ["detector", "classes", "mean area", "least (class)", "NDM - Identity"])


def anomalies_table() -> str:
    lines = found(read("anomalies"), data="table", training="clean", seed=0)
    kinds = values(lines, "kind")
    rows = [
        [method, *(pm((r["auc"], r["stderr"])) for k in kinds for r in found(lines, method=method, kind=k))]
        for method in values(lines, "method")
    ]
    return bench.table(rows, ["detector", *kinds])


def likelihood() -> str:
    """The log-density at the default tolerance: rows a second and errors, of this and of the older version."""
    lines = found(read("likelihood"), setting="0.01")
    rows = [
        [r["set"], r["d"], r["who"], f"{r['rows_per_second']:.0f}", f"{r['rms_error']:.4f}",
         f"{r['largest_error']:.3f}", f"{r['covered']:.3f}", f"{r['stated']:.1f}"]
        for r in lines
    ]  # fmt: skip
    header = ["set", "columns", "version", "rows/s", "rms error", "largest", "covered", "stated over true"]
    return bench.table(rows, header)


def likelihood_ratios() -> str:
    """How many times as many rows a second ours has, at an rms error below 0.05 and below each of the peer's."""
    lines, rows = read("likelihood"), []
    for name in values(lines, "set"):
        here = found(lines, set=name)

        def fastest(who: tuple[str, ...], error: float, here: list[dict[str, Any]] = here) -> float | None:
            able = [r["rows_per_second"] for r in here if r["who"] in who and r["rms_error"] <= error]
            return max(able, default=None)

        row, ours = [name], ("ours", "ours, plain")
        mine, theirs = fastest(ours, 0.05), fastest(("before",), 0.05)
        row.append(f"{mine / theirs:.1f}" if mine and theirs else "-")
        for r in found(here, who="theirs"):
            mine = fastest(ours, r["rms_error"])
            row.append(f"{r['rms_error']:.4f}: {mine / r['rows_per_second']:.1f}" if mine else "-")
        rows.append(row)
    header = ["set", "older version, error below 0.05", *values(found(lines, who="theirs"), "setting")]
    return bench.table(rows, header)


def scale() -> str:
    """Passes of the network per example, and core-hours for a billion rows or a thousand images."""
    rows = []
    for r in read("scale"):
        table = "table" in r["network"]
        count, exact = (1e9, 13 * (1 + r["d"]) + 59) if table else (1e3, 0)
        hours = [count * passes * r["seconds"] / 3600 for passes in (20, 32, exact)]
        shown = [f"{h:,.0f}" if h >= 10 else f"{h:.2g}" if h else "" for h in hours]
        name = f"{r['network']}: {'a billion rows' if table else 'a thousand images'}"
        rows.append([name, f"{r['parameters']:,}", f"{r['gflop']:.3g}", f"{r['seconds']:.2g}", *shown])
    header = ["network and data", "parameters", "GFLOP a pass", "CPU seconds a pass", "bound, core-hours"]
    return bench.table(rows, [*header, "samples, core-hours", "exact density, core-hours"])


def fast() -> str:
    """The errors and the speed of the fast score on a table."""
    rows = [
        [r["kind"], f"{r['spread']:.1f}", *(f"{r[k]:.2f}" for k in ("rms", "q0.5", "q0.95", "q0.99", "covered")),
         f"{r['rows_per_second']:,.0f}", f"{r['exact_rows_per_second']:,.0f}"]
        for r in found(read("fast"), set="magic")
    ]  # fmt: skip
    header = ["rows", "spread of log p", "rms error", "50%", "95%", "99%", "within error_95", "rows/s", "exact, rows/s"]
    return bench.table(rows, header)


def fast_anomalies() -> str:
    rows = [
        [r["set"], f"{r['auc_fast']:.3f}", f"{r['auc_exact']:.3f}", f"{r['rms']:.2f}", f"{r['q0.5']:.2f}", r["beyond"]]
        for r in found(read("fast"), kind="test")
        if "auc_fast" in r
    ]
    return bench.table(rows, ["set", "area, fast", "area, exact", "rms error", "median error", "rows too far"])


def samplers() -> str:
    lines, rows = read("samplers"), []
    for network in values(lines, "network"):
        for method in ("ddim", "ancestral"):
            row = [network, method]
            for who in ("azula", "diffusers"):
                r = one(lines, network=network, method=method, who=who)
                low, _, high = r["ratio_quartiles"]
                row += [f"{r['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{r['apart']:.0e}" if r["apart"] else "-"]
            rows.append(row)
    header = ["network", "sampler", "time over azula's", "largest difference", "time over diffusers'"]
    return bench.table(rows, [*header, "largest difference"])


def cost(share: Callable[[float], bool]) -> str:
    """Time of a step over Identity's, in T = 10 steps / in continuous time."""
    lines = [r for r in read("cost") if share(r["share"]) and r["model"] != "Identity"]
    rows, names = [], [(name, equal) for name in values(lines, "model") for equal in ("denoiser", "total")]
    for setting in values(lines, "setting"):
        times = [one(lines, setting=setting, equal=equal, model=name)["times"].values() for name, equal in names]
        rows.append([setting, *(" / ".join(f"{t['ratio']:.2f}" for t in both) for both in times)])
    return bench.table(rows, ["networks", *(f"{name}, equal {equal}" for name, equal in names)])


def steps() -> str:
    """Steps of VDM and of ``fit`` over those of other code."""
    rows = []
    for r in found(read("vdm"), model="ours"):
        size = f"VDM, width {r['width']}, {r['blocks']} blocks, batch {r['batch']}"
        rows.append([size, f"{r['parameters']:,}", f"{r['ratio']:.2f}", ""])
    for r in read("loop"):
        (low, high), name = r["ratio_quartiles"], f"`ndm train {r['configuration']}`, batch {r['batch_size']}"
        rows.append([name, f"{r['parameters']:,}", f"{r['ratio']:.3f}", f"{low:.3f} to {high:.3f}"])
    return bench.table(rows, ["step", "parameters", "time over the other's", "quartiles"])


def import_time() -> str:
    rows = [[f"`{r['what']}`", f"{r['cpu_s']:.2f}", f"{r['over_torch']:.2f}"] for r in read("import_time")]
    return bench.table(rows, ["command", "CPU seconds, median", "times `import torch`"])


def precision() -> str:
    lines, rows = read("precision"), []
    for model in values(lines, "model"):
        for steps in (None, 10):
            bound = one(lines, model=model, steps=steps, arithmetic="float32")["bound"]
            row = [model, steps or "continuous", f"{bound:.4f}"]
            for kind in ("bf16 networks", "bf16, subtracted"):
                r = one(lines, model=model, steps=steps, arithmetic=kind)
                row.append(pm((r["difference"], r["difference_stderr"]), 5, "+"))
            rows.append(row)
    header = ["model", "T", "float32, bits/dim", "networks in bfloat16", "x_hat subtracted in bfloat16"]
    return bench.table(rows, header)


def reverse_variance(name: str) -> str:
    lines = read(name)
    sets, rows = values(lines, "data"), []
    for variance in values(lines, "variance"):
        here = [found(lines, variance=variance, data=name) for name in sets]
        rows.append([variance, *(pm((r[0]["bound"], r[0]["stderr"])) if r else "" for r in here)])
    units = (f"{name}, {found(lines, data=name)[0]['unit']}" for name in sets)
    return bench.table(rows, ["reverse variance", *units])


def dynamics() -> str:
    lines, rows = read("dynamics"), []
    for case in ("apart", "eight Gaussians"):
        here = found(lines, case=case)
        for model, weight in [("Identity", 0.0), ("Identity", 0.1), ("NDM", 0.0), ("NDM", 0.01), ("NDM", 0.1)]:
            of = found(here, model=model, weight=weight)
            columns = [[r["straightness"] / r["transport"] for r in of]]
            columns += [[r["distance"][f"euler {n}"] for r in of] for n in (1, 10)] + [[r["gap"] for r in of]]
            figures = (pm(bench.mean_and_error(c)) for c in columns)
            rows.append([case, model, f"{weight:g}", f"{statistics.mean(r['steps'] for r in of):,.0f}", *figures])
    header = ["data", "model", "weight", "steps", "straightness", "1 Euler step", "10 Euler steps", "bound - entropy"]
    return bench.table(rows, header)


def imported() -> str:
    """The bound of an imported model, by two implementations."""
    (row,) = read("imported")
    header = ["", "bound, bits/dim"]
    rows = [[name, pm(row[name], 5)] for name in ("ndm", "improved diffusion")]
    return bench.table(rows, header)


def across(which: tuple[int | None, str], *names: str, same_seeds: bool = False) -> str:
    """The models of comparisons in columns: the reference, and the differences from it."""
    rows, columns, shared = [], {}, [found(bench.read("suite"), comparison=name) for name in names]
    seeds = set.intersection(*({line["seed"] for line in lines} for lines in shared)) if same_seeds else None
    for lines in ([line for line in lines if seeds is None or line["seed"] in seeds] for lines in shared):
        own = {re.sub("^.*, free", "F", model.replace("channel", "dimension")): model for model in lines[0]["models"]}
        columns = columns or own
        reference, *others = (own.get(name, name) for name in columns)
        row = [f"{lines[0]['data']}, {len(lines)}, {lines[0]['budget']['seconds']:g} s", shown(lines, reference, which)]
        rows.append([*row, *(shown(lines, other, which, "difference", sign="+") for other in others)])
    return bench.table(rows, ["data, seeds, each", *columns])


#: Comparisons of learned noise.
NOISE = ("table-noise", "magic-noise", "digits-noise", "mnist-noise", "cifar10-noise")

TABLES: dict[str, Callable[[], str]] = {
    "levels": lambda: against_reference("digits-tuned", "digits-recommended", "mnist-recommended"),
    "cifar10": lambda: against_reference("cifar10-recommended"),
    "vectors": lambda: against_reference("table-tuned", "pinwheel-tuned", "checkerboard-tuned"),
    "table-density": lambda: models_of("table-density"),
    "ablations": lambda: models_of("digits-ablations"),
    "noise": lambda: across(CONTINUOUS, *NOISE), "noise-steps": lambda: across(EVEN, *NOISE),
    "noise-budgets": lambda: across(
        CONTINUOUS, *(f"cifar10-noise{seconds}" for seconds in ("-60", "", "-900")), same_seeds=True
    ),
    "natural": lambda: across(CONTINUOUS, "cifar10-900"),
    "frequency": lambda: against_reference("cifar10-frequency", "cifar10-900", "mnist-frequency"),
    "imported": imported, "image-variance": lambda: reverse_variance("image_variance"),
    "reverse-variance": lambda: reverse_variance("reverse_variance"), "samples": samples, "tables": tables,
    "score": score, "many-rows": many_rows,
    "anomalies-digits": anomalies_digits, "anomalies-table": anomalies_table, "likelihood": likelihood,
    "likelihood ratios": likelihood_ratios, "scale": scale, "fast": fast,
    "fast-anomalies": fast_anomalies, "samplers": samplers, "cost": lambda: cost(lambda share: share < 0.2),
    "cost-half": lambda: cost(lambda share: share >= 0.2), "steps": steps, "import-time": import_time,
    "precision": precision, "dynamics": dynamics,
    **OF_TABLES,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}")
    for name in options.tables or TABLES:
        print(f"{name}\n\n{TABLES[name]()}\n")


if __name__ == "__main__":
    main()
