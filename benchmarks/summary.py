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


def images(name: str, title: str) -> str:
    result = read(f"images-{name}")
    found = {(r["model"], r["steps"], r["variance"]): r for r in result["rows"]}
    rows = []
    for (model, steps, variance), ours in found.items():
        if model != "NDM":
            continue
        both = (found["Identity", steps, variance], ours)
        rows.append([
            steps or "continuous", variance or "-", *(f"{r['value']:.3f} ± {r['stderr']:.3f}" for r in both),
            f"{ours['difference']:+.3f} ± {ours['difference_stderr']:.3f}",
            " / ".join(f"{r['reconstruction']:.2f}" for r in both),
        ])  # fmt: skip
    about = "; ".join(
        f"{model}: {r['parameters']:,} parameters, {r['steps_taken']:,} steps"
        for model in ("Identity", "NDM")
        for r in [next(r for r in result["rows"] if r["model"] == model)]
    )
    settings = result["settings"]
    return f"""## {title}

Trained side by side for {settings["seconds"] / 60:g} minutes each, one process and one thread each, one seed ({about}); bits per dimension on the
first {settings["examples"]:,} test images, the difference paired by image. The configurations are `configs/{name}-cpu*.yaml`.

{table(rows, ["T", "reverse variance", "Identity", "NDM (Separable)", "difference", "of which reconstruction"])}

![validation bound against minutes](results/images-{name}.png)
![samples of the two](results/images-{name}-samples.png)

{source(result)}
"""


def precision() -> str:
    result = read("precision")
    rows = [
        [
            r["model"], r["steps"] or "continuous", r["arithmetic"], f"{r['bound']:.4f}",
            f"{r['difference']:+.5f} ± {r['difference_stderr']:.5f}",
        ]
        for r in result["rows"]
    ]  # fmt: skip
    settings = result["settings"]
    return f"""## bfloat16 near the data

MNIST, gamma_0 = {settings["gamma_0"]} fixed, models trained for {settings["seconds"]:g} seconds in float32 and measured on
{settings["examples"]} test images with the same times and noise in three arithmetics: float32; the networks in bfloat16 and the
residual path in float32, which is what `bf16-mixed` means here; and x_hat formed in bfloat16 and subtracted from x, which is
what autocast around a whole program comes to.

{table(rows, ["model", "T", "arithmetic", "bound, bits/dim", "difference from float32, paired"])}

{source(result)}
"""


def vdm() -> str:
    result = read("vdm")
    rows = [
        [
            r["width"], r["blocks"], r["batch"], f"{r['parameters']:,}", f"{r['ratio']:.2f}", f"{r['memory_ratio']:.2f}",
        ]
        for r in result["rows"]
        if r["model"] == "ours"
    ]  # fmt: skip
    return f"""## A step of VDM against another implementation's

Our step over that of [addtt/variational-diffusion-models](https://github.com/addtt/variational-diffusion-models), the same
architecture, batch and bound, {result["settings"]["rounds"]} interleaved rounds, medians: below 1 is faster, or less memory.

{table(rows, ["width", "blocks", "batch", "our parameters", "time", "memory"])}

{source(result)}
"""


def loop() -> str:
    result = read("loop")
    rows = [
        [f"{r['ms_by_hand']:.0f}", f"{r['ms_ndm']:.0f}", f"{r['ratio']:.3f}", " to ".join(f"{q:.3f}" for q in r["ratio_quartiles"])]
        for r in result["rows"]
    ]  # fmt: skip
    settings = result["settings"]
    return f"""## What training costs beyond its arithmetic

A step of `ndm train`'s loop (Lightning, its callbacks, the averaged weights, a line in the log every {settings["logged_every"]} steps) over the same step in a
loop written by hand; the same network of {settings["parameters"]:,} parameters, the same random numbers, equal weights at the end;
{settings["rounds"]} rounds of {settings["steps_of_a_turn"]} steps in turns.

{table(rows, ["by hand, ms", "ndm, ms", "ratio, median", "quartiles"])}

{source(result)}
"""


def score() -> str:
    result = read("score")
    rows = [
        [
            f"{r['tolerance']:g}", f"{r['rows_per_second']:.0f}", f"{r['correlation']:.3f}", f"{r['mean_error']:+.3f}",
            f"{r['mean_absolute_error']:.3f}", f"{r['solver_error']:.3f} ({r['stated_solver_error']:.3f})",
        ]
        for r in result["rows"]
    ]  # fmt: skip
    last = result["rows"][-1]
    header = ["tolerance", "rows/s", "correlation", "mean error", "mean absolute error", "solver's error (stated)"]
    return f"""## Scores of a table against its density

`ndm train table` and `ndm score` on 20,000 rows and 8 columns of a Gaussian mixture whose density is known; log_prob against the
truth, nats; one seed, the machine busy. The bound lies within two of its stated errors of the bound itself (1,000 noise levels) for
{last["bounds_within_two"]:.0%} of the rows, and of the truth for {last["truths_within_two"]:.0%}; 95% would be right for the former.

{table(rows, header)}

{source(result)}
"""


if __name__ == "__main__":
    README.write_text(
        "\n".join(
            [
                INTRO,
                oracles(),
                reverse_variance(),
                cost(),
                images("mnist", "MNIST at 28x28"),
                images("cifar10", "CIFAR-10 (JPEG) at 32x32"),
                vdm(),
                loop(),
                precision(),
                score(),
                bound_on_toys(),
                import_time(),
            ]
        )
    )
    print(README)
