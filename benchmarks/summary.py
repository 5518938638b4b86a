"""Write README.md here from the results: every figure in it comes from a file in results/ and names its command.

python benchmarks/summary.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import RESULTS, table

README = Path(__file__).parent / "README.md"

INTRO = """# Measured

Every table here is written by `python benchmarks/summary.py` from `results/*.json`, which the commands named below wrote.
Times are ratios to Identity measured side by side in one run; errors are standard errors. Nothing here ran on a GPU.
"""


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def source(result: dict[str, Any]) -> str:
    e = result["environment"]
    return (
        f"`{e['command']}`, {e['date']}, Python {e['python']}, PyTorch {e['torch']}, {e['machine']} with {e['cores']} cores, "
        f"{e['threads']} thread."
    )


def reverse_variance() -> str:
    result = read("reverse_variance")
    found = {(r["data"], r["variance"]): f"{r['bound']:.3f} ± {r['stderr']:.3f}" for r in result["rows"]}
    names = list(dict.fromkeys(r["data"] for r in result["rows"]))
    units = {r["data"]: r["unit"] for r in result["rows"]}
    variances = ("posterior", "isotropic", "diagonal", "full", "learned", "predicted", "continuous time")
    rows = [[v, *(found[n, v] for n in names)] for v in variances]
    seeds = result["settings"]["seeds"]
    return f"""## The reverse variance at T = {result["settings"]["steps"]}

Identity, bound on -log p of the test split, calibrated on the training split; {seeds} seed{"s" if seeds > 1 else ""}, the
same budget for every row. Learned and predicted variances are trained at that T, the others come from one model trained in
continuous time (last row).

{table(rows, ["reverse variance", *(f"{n}, {units[n]}" for n in names)])}

{source(result)}
"""


def cost() -> str:
    result = read("cost")
    parts = []
    for setting in dict.fromkeys(r["setting"] for r in result["rows"]):
        lines = []
        for r in (r for r in result["rows"] if r["setting"] == setting and r["model"] != "Identity"):
            times = [f"{t[key]:.2f}" for t in r["times"].values() for key in ("ratio", "memory_ratio")]
            lines.append([r["model"], r["equal"], f"{r['share']:.0%}", *times])
        base = next(r for r in result["rows"] if r["setting"] == setting)
        ms = ", ".join(f"{label} {t['ms']:.1f} ms and {t['peak_mib']:.0f} MiB" for label, t in base["times"].items())
        header = ["model", "equal", "F's share", "T = 10: time", "memory", "continuous: time", "memory"]
        parts.append(f"### {setting}\n\nIdentity, {base['parameters']:,} parameters: {ms}.\n\n{table(lines, header)}\n")
    return f"""## The cost of a training step

Bound, backward pass and optimiser, as ratios to Identity: medians over {result["settings"]["rounds"]} interleaved rounds;
memory is the peak of what torch holds. At an equal *denoiser* F comes on top; at equal *total* parameters the denoiser
gives up what F takes. A small F has three layers (dense, or convolutions on images); one with half of the parameters is of
the denoiser's kind. The targets were: Separable at most 1.0 at equal total and 1.6 at an equal denoiser, Neural at most 2.3
at T = 10.

With a small F, Separable keeps 1.6 at an equal denoiser everywhere but with convolutions on 28x28 images, and Neural keeps 2.3
there too but for the same case. Separable at equal total parameters does not reach 1.0: F runs twice, on x and on x_hat, and
a denoiser narrower by a few channels is not faster on a CPU; a dense F on 8x8 images comes nearest. Half of the parameters
in F breaks nearly every target: the network is then run up to six times a step.

{chr(10).join(parts)}
{source(result)}
"""


def oracles() -> str:
    result = read("oracles")
    rows = [[r["case"], f"{r['value']:.6f}", f"{r['stderr']:.1e}", f"{r['truth']:.6f}"] for r in result["rows"]]
    return f"""## Closed forms

x ~ N(0, 1.7), {result["settings"]["examples"]:,} examples, float64, nats; the tests have the same without Monte-Carlo noise. The
density's error is at points up to three standard deviations, for gamma_1 = 12, where the closed form is that of gamma_1 to
infinity: it falls as e^-gamma_1.

{table(rows, ["case", "value", "standard error", "closed form"])}

{source(result)}
"""


def bound_on_toys() -> str:
    result = read("bound_on_toys")
    rows = []
    for toy in dict.fromkeys(r["toy"] for r in result["rows"]):
        for model in dict.fromkeys(r["model"] for r in result["rows"]):
            here = [r for r in result["rows"] if (r["toy"], r["model"]) == (toy, model)]
            ten = {r["variance"]: r["gap"] for r in here if r["steps"] == 10}
            last = next(r for r in here if r["steps"] is None)
            least = min(here, key=lambda r: r["gap"] / r["stderr"])
            rows.append([toy, model, *(f"{ten[v]:.3f}" for v in ("own", "isotropic", "full")), f"{last['gap']:.3f}",
                         f"{least['gap']:.3f} ± {least['stderr']:.3f}"])  # fmt: skip
    lowest = min(r["gap"] / r["stderr"] for r in result["rows"])
    return f"""## The bound is a bound

NELBO minus the exact entropy in nats, on the toys, for every transformation at T = 1, 5, 10, 50, 1000 and in continuous
time, with each reverse variance (calibrated ones up to T = 50): {len(result["rows"])} bounds. The least of them is {lowest:+.1f} standard errors from the
entropy; none is below it. Models trained for {result["settings"]["training_steps"]} steps, one seed: the gaps say nothing of
which is best.

{table(rows, ["toy", "model", "T = 10, own", "T = 10, isotropic", "T = 10, full", "continuous", "least of all"])}

{source(result)}
"""


def import_time() -> str:
    result = read("import_time")
    rows = [
        [r["import"], f"{r['median_s']:.2f}", f"{r['over_torch_s']:+.2f}", r["heavy"] or "none"] for r in result["rows"]
    ]
    header = ["import", "seconds, median", "over torch", "of Lightning, matplotlib, diffusers ..."]
    return f"""## What `import ndm` costs

{table(rows, header)}

{source(result)}
"""


if __name__ == "__main__":
    README.write_text("\n".join([INTRO, oracles(), reverse_variance(), cost(), bound_on_toys(), import_time()]))
    print(README)
