"""Compare models at equal parameters and equal CPU seconds of training, on the same data.

    python benchmarks/suite.py                      every comparison of suite.yaml that has no result
    python benchmarks/suite.py digits-tuned         this one
    python benchmarks/suite.py digits-tuned --tune  try its learning rates on validation data, and print the bounds
    python benchmarks/suite.py --list               print the comparisons

Comparisons on MNIST, CIFAR-10 and magic need --data FOLDER with mnist-*.parquet, cifar10-*.parquet or tables/magic. A
result is one line of results/suite.jsonl per comparison and seed; differences are from the first model and paired by
test example.

Each model is trained by ``ndm.training.fit`` on one thread, or with --device cuda on a GPU. The number of its steps is
the budget over the CPU seconds (on a GPU, the seconds) of a step, which are measured first with the models in turns.
The seconds of each run, with its validation and its samples, are in the result. The runs stay in --work: the same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, card, environment, parameters, seconds, seconds_per_step, table, write
from suite.building import build, check_sizes
from suite.datasets import dataset, entropy, lines, missing, slug
from suite.measuring import compared, measure, scale, unit
from suite.settings import SUITE, Comparison, read

import ndm
from ndm.data import Data
from ndm.evaluation import bound_per_example, mean_and_error
from ndm.training import NonFiniteLoss, Run, TrainerOptions, TrainingOptions, fit

#: Seed of the trainings of --tune, which no result has.
TUNING_SEED = 1000


def kept(file: Path, of: Any) -> Any:
    """What :func:`keep` has written to the file, if it is of the same settings, else None."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found.get("value") if found.get("of") == json.loads(json.dumps(of)) else None


def keep(file: Path, of: Any, value: Any) -> Any:
    """Write a value and the settings that it is of to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"of": of, "value": value}))
    return value


def steps_of(
    models: dict[str, ndm.NDM], comparison: Comparison, data: Data, options: argparse.Namespace, file: Path
) -> Any:
    """The steps of each model: the same number for all, or as many as fit into the seconds. They stay in a file."""
    if options.steps is not None:
        return dict.fromkeys(models, options.steps)
    of = asdict(comparison)
    if (found := kept(file, of)) is not None:
        return found
    work = {name: (model, data, comparison.batch_size) for name, model in models.items()}
    found = seconds_per_step(work, device=options.device)
    return keep(file, of, {name: max(1, round(comparison.seconds / s)) for name, s in found.items()})


def trained(
    model: ndm.NDM, name: str, comparison: Comparison, data: Data, steps: int, seed: int, folder: Path, device: str
) -> tuple[ndm.NDM, float]:
    """The model with the averaged weights of its last step, and its seconds; a finished run is read again."""
    settings = comparison.models[name]
    of = [asdict(settings), comparison.common(), steps, seed]
    if (found := kept(folder / "seconds.json", of)) is not None:
        return ndm.NDM.from_pretrained(Run(folder).model).to(device).eval(), found
    training = TrainingOptions(
        learning_rate=settings.learning_rate, transform_rate=settings.f_rate, endpoint_rate=comparison.endpoint_rate,
        weight_decay=comparison.weight_decay, warmup=comparison.warmup, ema=comparison.ema,
        batch_size=comparison.batch_size, keep="last",
    )  # fmt: skip
    limits = TrainerOptions(
        max_steps=steps, patience=None, accelerator="cpu" if device == "cpu" else "gpu",
        gradient_clip_val=comparison.clip, val_check_interval=steps,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)  # a run that was stopped, or has other settings
    began = seconds(device)
    fit(model, data, folder, training, limits, seed=seed, progress=False)
    return model.to(device).eval(), keep(folder / "seconds.json", of, round(seconds(device) - began, 3))


def result(name: str, comparison: Comparison, seed: int, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure the models of a comparison: one line of the results."""
    models = {}
    for model in comparison.models:
        torch.manual_seed(seed)
        models[model] = build(comparison.models[model], comparison, data)
    check_sizes(models, comparison)
    work = options.work / f"{name}--{seed}"
    budget = {"steps": options.steps} if options.steps else {"seconds": comparison.seconds}
    steps = steps_of(models, comparison, data, options, work / "steps.json")
    line: dict[str, Any] = {
        "comparison": name, "seed": seed, "data": comparison.data, "unit": unit(data), "entropy": entropy(data),
        "budget": budget, "environment": environment() | (card() if options.device == "cuda" else {}),
        "settings": comparison.common(), "models": {},
    }  # fmt: skip
    reference: dict[tuple[int | None, str], torch.Tensor] = {}
    for model, built in models.items():
        print(f"{name}, seed {seed}: {model}, {steps[model]:,} steps", flush=True)
        done, spent = trained(built, model, comparison, data, steps[model], seed, work / slug(model), options.device)
        values = measure(done, comparison, data)
        reference = reference or values
        line["models"][model] = {
            "parameters": parameters(done), "parameters_in_f": parameters(done.transform),
            "parameters_in_noise": 0 if done.noise is None else parameters(done.noise), "steps": steps[model],
            "seconds": spent, "end_points": list(done.schedule.end_points()),
            "settings": asdict(comparison.models[model]), "bounds": compared(values, reference),
        }  # fmt: skip
    return line


def run(name: str, comparison: Comparison, options: argparse.Namespace) -> None:
    """Add the lines of a comparison that the results lack."""
    data = dataset(comparison.data, options.data)
    for seed in comparison.seeds:
        found = lines(options.results)
        if any((one["comparison"], one["seed"]) == (name, seed) for one in found) and not options.redo:
            print(f"{name}, seed {seed}: has a result", flush=True)
            continue
        line = result(name, comparison, seed, data, options)
        write(options.results, [o for o in found if (o["comparison"], o["seed"]) != (name, seed)] + [line])
        shown = [
            [model, bound["steps"] or "continuous", bound["variance"], f"{bound['value']:.3f} ± {bound['stderr']:.3f}",
             f"{bound['difference']:+.3f} ± {bound['difference_stderr']:.3f}"]
            for model, one in line["models"].items() for bound in one["bounds"]
        ]  # fmt: skip
        print(table(shown, ["model", "T", "variance", f"bound, {line['unit']}", "difference"]), flush=True)


def tune(name: str, comparison: Comparison, options: argparse.Namespace) -> None:
    """Print the validation bound of each model with each learning rate."""
    data = dataset(comparison.data, options.data)
    if not comparison.tune:
        raise ValueError(f"{name} has no learning rates to try: give it tune in suite.yaml.")
    shown = []
    for rate in comparison.tune:
        models = {m: replace(one, learning_rate=rate) for m, one in comparison.models.items()}
        trial, bounds = replace(comparison, models=models), []
        for model in models:
            torch.manual_seed(TUNING_SEED)
            built = build(models[model], trial, data)
            work = options.work / f"{name}--tune"
            steps = steps_of({model: built}, trial, data, options, work / f"{slug(model)}.json")[model]
            folder = work / f"{slug(model)}-{rate:g}"
            done, _ = trained(built, model, trial, data, steps, TUNING_SEED, folder, options.device)
            x = data.examples("validation")[: comparison.examples]
            mean, error = mean_and_error(bound_per_example(done, x, None)["total"] * scale(data))
            bounds.append(f"{mean:.3f} ± {error:.3f}")
        shown.append([f"{rate:g}", *bounds])
    print(table(shown, ["learning rate", *comparison.models]), flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="COMPARISON", help="comparisons of suite.yaml (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of those of the comparison")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, help="the budget of each training, in place of the comparison's")
    budget.add_argument("--steps", type=int, help="the same number of steps for every model")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the folder of MNIST and CIFAR-10")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--redo", action="store_true", help="replace results")
    parser.add_argument("--results", type=Path, default=RESULTS / "suite.jsonl", help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/suite"), help="of the runs (default: %(default)s)")
    parser.add_argument("--suite", type=Path, default=SUITE, help="another file of comparisons")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the comparisons")
    what.add_argument("--tune", action="store_true", help="try learning rates on validation data")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(1)
    logging.getLogger("ndm").setLevel(logging.WARNING)
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs an NVIDIA card, and PyTorch finds none.")
        suite = read(options.suite)
        if unknown := [name for name in options.names if name not in suite]:
            raise ValueError(f"There is no comparison {', '.join(unknown)}: there are {', '.join(suite)}.")
        for name in options.names or suite:
            one = suite[name]
            one = replace(one, seconds=options.seconds or one.seconds, seeds=tuple(options.seeds or one.seeds))
            if options.list:
                print(f"{name}: {one.data}, {one.seconds:g} s, {len(one.seeds)} seeds, {', '.join(one.models)}")
            elif (lacking := missing(one.data, options.data)) is not None:
                print(f"{name}: left out. {lacking}", flush=True)
            else:
                (tune if options.tune else run)(name, one, options)
    except (ValueError, OSError, NonFiniteLoss) as error:
        print(f"suite.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
