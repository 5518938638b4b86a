"""A conventional model and an NDM on images of full size, at equal parameters and equal seconds, side by side.

    python benchmarks/images.py mnist --data 'FOLDER/mnist-*.parquet' --seconds 1200
    python benchmarks/images.py cifar10 --data 'FOLDER/cifar10-*.parquet' --seconds 1200

The two are trained at the same time, each in a process with one thread, by `fit` as `ndm train` does, and measured on
the first test examples: the bound at T = 10, 50 and in continuous time, with the posterior's reverse variance and with
calibrated ones. Writes results/images-NAME.json, .png (curves) and -samples.png.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, mean_and_error, parameters, save, table

from ndm.plotting import side_by_side

CONFIGS = Path(__file__).parent / "configs"
STEPS = (10, 50, None)
COVARIANCES = ("posterior", "isotropic", "diagonal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("mnist", "cifar10"))
    parser.add_argument("--data", required=True, help="parquet files, or a name on the hub")
    parser.add_argument("--seconds", type=float, default=1200, help="of training, each (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=1000, help="test examples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs", help="where the runs go (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], help="an override of both: --set=--seed=1")
    options = parser.parse_args()
    names = {"Identity": f"{options.name}-cpu-identity", "NDM": f"{options.name}-cpu"}
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(len(names)) as pool:
        jobs = [(config, vars(options)) for config in names.values()]
        found = dict(zip(names, pool.starmap(train_and_measure, jobs), strict=True))
    rows = []
    for name, result in found.items():
        per_example = result.pop("per_example")
        for i, row in enumerate(result["rows"]):
            difference = {}
            if name == "NDM":
                gap, error = mean_and_error(per_example[i] - found["Identity"]["kept"][i])
                difference = {"difference": gap, "difference_stderr": error}
            rows.append({"model": name, **{k: result[k] for k in ("parameters", "steps_taken")}, **row, **difference})
        result["kept"] = per_example
    draw(found, RESULTS / f"images-{options.name}.png")
    samples = {f"{name}, 100 steps": torch.from_numpy(result["samples"]) for name, result in found.items()}
    side_by_side(samples, RESULTS / f"images-{options.name}-samples.png")
    settings = {k: v for k, v in vars(options).items() if k not in ("data", "out")}
    curves = {name: result["curve"] for name, result in found.items()}
    path = save(f"images-{options.name}", rows, settings | {"curves": curves, "data": Path(options.data).name})
    print(summary(rows))
    print(path)


def train_and_measure(config: str, options: dict[str, Any]) -> dict[str, Any]:
    """One side: train it, measure it, draw samples."""
    from ndm.configs.configuration import Configuration
    from ndm.evaluation import evaluate
    from ndm.inference.sampling import sample_batches
    from ndm.training import Run, fit
    from ndm.training.run import read_checkpoint

    torch.set_num_threads(1)
    overrides = [f"--data.path={options['data']}", f"--trainer.max_time={options['seconds']}"]
    overrides += ["--trainer.patience=null", "--training.keep=last"]  # the whole time for every model
    configuration = Configuration.read(
        str(CONFIGS / f"{config}.yaml"), [*overrides, f"--seed={options['seed']}", *options["set"]]
    )
    built = configuration.build()
    run = Run(Path(options["out"]) / config)
    model = fit(
        built.model, built.data, run.path, built.training, built.trainer,
        seed=built.seed, config=configuration.text, progress=False,
    )  # fmt: skip
    evaluation = evaluate(
        model, built.data, steps=STEPS, covariances=COVARIANCES, likelihood=False,
        max_examples=options["examples"], seed=options["seed"], times=20, calibration=20_000, progress=False,
    )  # fmt: skip
    evaluation.save(run.evaluation)
    samples = torch.cat([x for _, x in sample_batches(model, 36, built.data.shape, steps=100, progress=False)])
    return {
        "rows": evaluation.rows,
        "samples": samples.numpy(),
        "per_example": [values.numpy() for values in evaluation.per_example],
        "parameters": parameters(model),
        "steps_taken": int(read_checkpoint(run.last)["global_step"]),
        "curve": curve(run.metrics, options["seconds"]),
    }


def curve(metrics: Path, seconds: float) -> list[dict[str, float]]:
    """The validation bound against the steps, and about when: at an even pace."""
    with metrics.open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/total"]]
    last = int(rows[-1]["step"])
    return [
        {
            "step": int(row["step"]),
            "seconds": seconds * int(row["step"]) / last,
            "bound": float(row["val/total"]),
            "stderr": float(row["val/total_stderr"]),
        }
        for row in rows
    ]


def draw(found: dict[str, Any], path: Path) -> None:
    """The learning curves against the clock."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for name, result in found.items():
        points = result["curve"]
        axes.plot([p["seconds"] / 60 for p in points], [p["bound"] for p in points], label=name)
    lowest = min(p["bound"] for result in found.values() for p in result["curve"])
    axes.set_ylim(lowest - 0.05, lowest + 1.5)
    axes.set_xlabel("minutes of training, one core")
    axes.set_ylabel("validation bound, bits/dim")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def summary(rows: list[dict[str, Any]]) -> str:
    by_key = {(row["model"], row["steps"], row["variance"]): row for row in rows}
    lines = []
    for (name, steps, variance), ours in by_key.items():
        if name != "NDM":
            continue
        theirs = by_key["Identity", steps, variance]
        lines.append(
            [
                steps or "continuous", variance or "-",
                *(f"{r['value']:.3f} ± {r['stderr']:.3f} (rec. {r['reconstruction']:.2f})" for r in (theirs, ours)),
                f"{ours['difference']:+.3f} ± {ours['difference_stderr']:.3f}",
            ]
        )  # fmt: skip
    header = ["T", "variance", "Identity", "NDM", "difference, paired"]
    about = ", ".join(
        f"{r['model']} {r['parameters']:,} parameters, {r['steps_taken']:,} steps" for r in (rows[0], rows[-1])
    )
    return f"{about}\n\n{table(lines, header)}\n"


if __name__ == "__main__":
    main()
