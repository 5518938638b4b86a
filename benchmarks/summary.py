"""Write README.md here from the results: every figure in it comes from a file in results/ and names its command.

python benchmarks/summary.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import RESULTS, mean_and_error, table
from density import summary as density
from peers import checkerboard, gaussians, samplers
from peers.racing import over_seeds
from suite import figures, gridding, quality, repeating

README = Path(__file__).parent / "README.md"

#: Solvers and steps whose samples are in the table of the curvature's penalty.
SHOWN = ("euler 1", "euler 2", "euler 5", "euler 10", "euler 100", "midpoint 5")

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


def dynamics() -> str:
    result = read("dynamics")
    settings, parts = result["settings"], []

    def of(case: str, model: str, weight: float, what: Callable[[dict[str, Any]], float]) -> str:
        wanted = (case, model, weight)
        return f"{mean_and_error([what(r) for r in result['rows'] if (r['case'], r['model'], r['weight']) == wanted])[0]:.2f}"

    def straightness(row: dict[str, Any]) -> float:
        return row["straightness"] / row["transport"]

    def euler(row: dict[str, Any]) -> float:
        return row["distance"]["euler 1"]

    def bound(row: dict[str, Any]) -> float:
        return row["gap"]

    for case in dict.fromkeys(r["case"] for r in result["rows"]):
        of_case = [r for r in result["rows"] if r["case"] == case]
        base = [r for r in of_case if (r["model"], r["weight"]) == ("Identity", 0.0)]
        on_a_line = "map_error" in of_case[0]
        lines = []
        for model, weight in dict.fromkeys((r["model"], r["weight"]) for r in of_case):
            rows = [r for r in of_case if (r["model"], r["weight"]) == (model, weight)]
            columns = [[straightness(r) for r in rows]]
            if on_a_line:
                columns += [[r["transport"] / r["exact_w2"] for r in rows], [r["map_error"] for r in rows]]
            columns += [[r["distance"][solver] for r in rows] for solver in SHOWN]
            columns += [[r["gap"] for r in rows]]
            if rows != base:
                columns += [[r["nelbo"] - b["nelbo"] for r, b in zip(rows, base, strict=True)]]
            figures = ("{:.3f} ± {:.3f}".format(*mean_and_error(v)) for v in columns)
            lines.append([model, f"{weight:g}", f"{rows[0]['steps']:,}", *figures, *(["-"] if rows == base else [])])
        header = ["model", "weight", "steps", "straightness", *(["cost / exact", "map's error"] if on_a_line else [])]
        header += [solver.capitalize() for solver in SHOWN] + ["bound - entropy", "bound - Identity's"]
        parts.append(f"### {case[0].upper() + case[1:]}\n\n{table(lines, header)}\n")
    plane = [r for r in result["rows"] if "mmd" in r]
    excess = max(abs(r[key]) for r in plane for key in ("excess", "excess_half"))
    (floor,) = settings["floor"].values()
    return f"""## A penalty on the curvature of the paths

Bound + weight x `ndm.curvature`, the squared acceleration of the reverse ODE, on mixtures of two Gaussians on a line and on eight Gaussians
in the plane. Identity and NDM (`Separable`, {settings["terms"]} Legendre polynomials, gate `free`) have gamma linear in t from {settings["gamma"][0]:g} to {settings["gamma"][1]:g}; the path
of flow matching is Identity with `OTSchedule`. Small residual perceptrons; each row had {settings["seconds"]:g} processor seconds for all its models in one
batch (three mixtures on the line; {settings["seeds"]} seeds), in which the penalty, that differentiates the networks twice, leaves fewer steps. Means over seeds ±
standard errors.

With D = z_1 - z_0 and f the ODE's velocity, "straightness" is the integral of E |f - D|^2 over E |D|^2: 0 for straight paths at one speed in t,
and what lies between the paths' kinetic energy and that of optimal transport, wherever pairs (z_0, z_1) are optimal. That they are: on a
line by necessity, since paths do not cross; in the plane no other pairing of {settings["points"]} ends is better by more than {excess:.1g} of the cost, nor of half
of them, for any of these models. So here transport between the ends is optimal without any penalty, and dynamics are what there is to be learned.
"cost / exact" is E |D|^2 over that of the exact map from N(0, 1) to the data, "map's error" the root of the mean square distance from it; "Euler n" is the distance
of samples of n steps from the data, W_1 against the exact quantiles on the line, sliced W_2 in the plane ({floor:.3f} for {settings["points"]} points of the data itself).

The penalty does make paths straight: on "apart" the straightness falls from {of("apart", "Identity", 0.0, straightness)} to {of("apart", "NDM", 0.1, straightness)}, and one step of Euler's method gives samples at {of("apart", "NDM", 0.1, euler)} in
place of {of("apart", "Identity", 0.0, euler)}. A learned F without it straightens nothing (NDM with weight 0). **But it is not optimal transport that is learned**: the
penalised paths are too short and their ends are not the data, so that from ten steps on the samples are worse than without, and the bound loses
what its column says. In the plane the eight components run into one ring, as the picture shows; the sliced distance at one step, {of("eight Gaussians", "NDM", 0.1, euler)}
in place of {of("eight Gaussians", "Identity", 0.0, euler)}, hardly sees that (fresh data: {floor:.2f}), while the bound does ({of("eight Gaussians", "NDM", 0.1, bound)} nats). **And most of it is not F's doing**: the same penalty on Identity, which
can only give up accuracy of the denoiser, brings the straightness of "apart" to {of("apart", "Identity", 0.1, straightness)}, at {of("apart", "Identity", 0.1, bound)} nats from the entropy. With F it is straighter
and {of("apart", "NDM", 0.1, bound)} nats from it; the single step is no better, and on "touching", where the components overlap, F adds nothing to the bound. The weight 0.01 is between
the two: straightness {of("apart", "NDM", 0.01, straightness)}, {of("apart", "NDM", 0.01, bound)} nats.

The penalised models took far fewer steps, so some of their loss may be training that they lack. In theory paths are straight for deterministic
pairs only (arXiv 2510.11657), which the noise at gamma_1 = {settings["gamma"][1]:g} excludes for any F; a range that ends at less noise was not measured.

{chr(10).join(parts)}
![paths with and without the penalty](results/dynamics.png)

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
            f"{r['mean_absolute_error']:.3f}", f"{r['solver_error']:.5f}", f"{r['largest_solver_error']:.4f}",
            f"{r['stated_row_error']:.4f}", f"{r['errors_within_stated']:.1%}",
        ]
        for r in result["rows"]
    ]  # fmt: skip
    last, settings = result["rows"][-1], result["settings"]
    header = [
        "tolerance", "rows/s", "correlation", "mean error", "mean absolute error", "solver's error", "its largest",
        "stated", "within stated",
    ]  # fmt: skip
    bounds = " and ".join(f"{b['within_two']:.0%} with {times} noise levels" for times, b in settings["bounds"].items())
    return f"""## Scores of a table against its density

`ndm train table` and `ndm score` on 20,000 rows and 8 columns of a Gaussian mixture whose density is known; log_prob against the
truth, nats; one seed, the machine busy, the F that `table` had before it got a small one (`configs/table-separable.yaml`). The errors against the truth are the model's; the solver's are what `--tolerance` buys.
The bound lies within two of its stated errors of the bound itself (1,000 noise levels) for {bounds}, where 95% would be right; and
of the truth for {last["truths_within_two"]:.0%}.

{table(rows, header)}

{_many(settings["many"])}
{source(result)}
"""


def _many(many: dict[str, Any] | None) -> str:
    if many is None:
        return ""
    same = "the same to the last bit" if many["same"] else "NOT the same"
    return f"""{many["rows"]:,} rows, killed (SIGKILL) after {many["killed_after"]:,} and given again: {many["seconds"] / 60:.0f} minutes in
all, {many["megabytes"]:.0f} MB at most; {many["few_rows"]:,} rows alone: {many["few_seconds"]:.0f} seconds, {many["few_megabytes"]:.0f} MB. Each row is there
once: {"yes" if many["each_once"] else "NO"}; rows without a likelihood: {many["missing"]}; the scores of the first {many["few_rows"]:,} are {same} in both files.
"""


def likelihood() -> str:
    result = read("likelihood")
    parts = {name: [r for r in result["rows"] if r["part"] == name] for name in ("divergence", "peer")}
    modes = [
        [r["case"], r["directions"], *("not possible" if r[f"{m} ratio"] is None else f"{r[f'{m} ratio']:.2f}"
                                       for m in ("forward", "batched"))]
        for r in parts["divergence"]
    ]  # fmt: skip
    rows = [
        [
            r["set"], r["who"], r["settings"], f"{r['rows_per_second']:.0f}", f"{r['mean_error']:.5f}", f"{r['largest_error']:.4f}",
            "" if r["who"] == "ours" else f"{r['ratio']:.1f}" if r["ratio"] else "none as good",
        ]
        for r in parts["peer"]
    ]  # fmt: skip
    apart = "; ".join(f"{s}: {a:.1g}" for s, a in {r["set"]: r["apart"] for r in parts["peer"]}.items() if a == a)
    return f"""## Likelihoods against another implementation's

[flow_matching](https://github.com/facebookresearch/flow_matching)'s `ODESolver.compute_likelihood` on the same networks and rows, one thread,
medians of three rounds, rows per second of the processor's time; errors in nats, against float64 at a tight tolerance, where the two are apart by at most {apart}. The last column
is how many times as many rows a second ours does, at the fastest of its settings with an error that is not larger.

{table(rows, ["set", "who", "settings", "rows/s", "mean error", "largest", "ours is faster by"])}

Where the divergence comes from, as multiples of the time of one backward pass a direction, which is what is done:

{table(modes, ["network", "directions", "forward mode", "one batched backward pass"])}

{source(result)}
"""


def newcomer() -> str:
    result = read("newcomer")
    found = result["settings"]["answers"]
    rows = [[f"`{r['command']}`", f"{r['seconds']:.0f}"] for r in result["rows"]]
    sampled, real = found["log_density_of_samples"], found["log_density_of_new_rows"]
    return f"""## A newcomer's path

From a clone to a page about 20,000 rows of 8 columns, on a machine of {result["environment"]["cores"]} cores that was busy with other things:

{table(rows, ["command", "seconds"])}

Of the 2,000 scores, against the true log-density: correlation {found["correlation"]:.3f}, mean error {found["mean_error"]:+.3f} nats, mean absolute error
{found["mean_absolute_error"]:.3f}; the truth lies within two stated errors of the bound for {found["truths_within_two"]:.0%} of the rows (stated:
{found["bound_stated_error"]:.2f} nats on average). The true log-density of the samples is {sampled[0]:.2f} ± {sampled[1]:.2f}, of new rows {real[0]:.2f} ± {real[1]:.2f}. The page
has {found["page_kilobytes"]:.0f} kB.

{source(result)}
"""


DETECTORS = ("Identity, bound", "Identity, ODE likelihood", "NDM, bound", "NDM, ODE likelihood", "GaussianMixture",
             "IsolationForest", "LocalOutlierFactor")  # fmt: skip


def anomalies() -> str:
    result = read("anomalies")
    settings, rows = result["settings"], result["rows"]
    taken = {
        data: [r["about"][m]["cpu_seconds_of_training"] for r in rows if r["data"] == data for m in ("Identity", "NDM")]
        for data in ("digits", "table")
    }
    steps = "; ".join(
        f"{data}: Identity {each['Identity']['steps']:,} steps and NDM {each['NDM']['steps']:,}, which took "
        f"{min(taken[data]):.0f} to {max(taken[data]):.0f} seconds"
        for data, each in settings["pace"].items()
    )
    return f"""## Do likelihoods find anomalies?

ROC-AUC, the probability that an outlier scores as less usual than an inlier. The NDM of the table has the F that the configuration
`table` had before it got a small one (`configs/table-separable.yaml`). Errors are DeLong's; those of the mean over held-out
classes are the classes' spread. A training was meant to take {settings["seconds"]:g} seconds of one core, by the pace of a quieter
moment ({steps} with what else the computer did).

{_held_out([r for r in rows if r["data"] == "digits"])}
{_planted([r for r in rows if r["data"] == "table"], settings)}
{source(result)}
"""


def _held_out(rows: list[dict[str, Any]]) -> str:
    found = {(r["held_out"], r["method"]): r for r in rows}
    classes = list(dict.fromkeys(r["held_out"] for r in rows))
    lines = [[c, *(f"{found[c, m]['auc']:.3f} ± {found[c, m]['stderr']:.3f}" for m in DETECTORS)] for c in classes]
    means = [mean_and_error([found[c, m]["auc"] for c in classes]) for m in DETECTORS]
    lines.append(["mean", *(f"{mean:.3f} ± {error:.3f}" for mean, error in means)])
    gain, other = (
        "{:+.3f} ± {:.3f}".format(*mean_and_error([found[c, m]["difference"] for c in classes]))
        for m in ("NDM, bound", "NDM, ODE likelihood")
    )
    wins = {m: sum(found[c, "NDM, bound"]["auc"] > found[c, m]["auc"] for c in classes) for m in DETECTORS[4:]}
    return f"""### A class of digits that was held out

Inliers are the test images of the other nine classes, outliers all images of the held-out one; {len(classes)} of the ten classes, one
training of each model per class. NDM minus Identity, paired by class: bound {gain}, ODE likelihood {other}.

Likelihoods are not the best detectors here: the NDM's bound has a larger area than LocalOutlierFactor in {wins["LocalOutlierFactor"]} of the {len(classes)} classes,
than GaussianMixture in {wins["GaussianMixture"]}, than IsolationForest in {wins["IsolationForest"]}. They do worst on the class 1 (Identity's bound {found[1, DETECTORS[0]]["auc"]:.2f}, the NDM's {found[1, DETECTORS[2]]["auc"]:.2f}; 0.5 is
chance): an image of it is simple, and simple images get high likelihoods from models that have never seen their like, as is known
(arXiv 1810.09136, 1909.11480). GaussianMixture, a likelihood too, does not fall as low. The trainings were short.

{table(lines, ["held out", *DETECTORS])}
"""


def _planted(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    methods, seeds = ("true density", *DETECTORS), {r["seed"] for r in rows}
    found = {(r["kind"], r["training"], r["method"], r["seed"]): r for r in rows}
    lines = [
        [training, kind, *(_mean_area([found[kind, training, m, seed] for seed in seeds]) for m in methods)]
        for kind, training in dict.fromkeys((r["kind"], r["training"]) for r in rows)
    ]
    lost = {
        ending: max(
            found[k, t, methods[0], s]["auc"] - r["auc"] for (k, t, m, s), r in found.items() if m.endswith(ending)
        )
        for ending in ("bound", "ODE likelihood")
    }
    spoiled = max(abs(r["auc"] - found[k, "clean", m, s]["auc"]) for (k, _, m, s), r in found.items())
    return f"""### A table with planted outliers

8 columns of a mixture of six Gaussians, {settings["train"]:,} rows to train on, clean or with 2% of outliers of all three kinds among them;
{settings["inliers"]:,} clean rows against {settings["outliers"]} outliers of a kind; {len(seeds)} seed{"s" if len(seeds) > 1 else ""}.

The true density says how much there is to find: no test does better on the uniform outliers, and many of the other two kinds
look like clean rows. The ODE likelihoods stay within {lost["ODE likelihood"]:.3f} of its area; the bounds, estimated from {settings["times"]} noise levels a row,
lose up to {lost["bound"]:.3f}. GaussianMixture, for which these data are made, reaches the true density's area. IsolationForest, which
cuts along one column at a time, hardly sees what breaks the dependence alone. Outliers among the training rows change no area
by more than {spoiled:.3f}.

{table(lines, ["training", "outliers", *methods])}
"""


def _mean_area(rows: list[dict[str, Any]]) -> str:
    """The mean over seeds, whose rows are drawn anew, and its error from each seed's own."""
    error = math.sqrt(sum(r["stderr"] ** 2 for r in rows)) / len(rows)
    return f"{sum(r['auc'] for r in rows) / len(rows):.3f} ± {error:.3f}"


def peers() -> str:
    result = read("peers")
    method, successor, steps = result["ndm"], result["nfdm"], result["samplers"]

    def seeds(part: dict[str, Any], size: str | None = None) -> str:
        n = len({row["seed"] for row in part["rows"] if row.get("size") == size})
        return f"{n} seeds" if n > 1 else "one seed"

    def of_method(model: str, key: str, size: str = "default") -> str:
        return over_seeds(method["rows"], {"size": size, "model": model}, key)

    def of_successor(model: str, key: str) -> str:
        return over_seeds(successor["rows"], {"model": model}, key)

    entropy = mean_and_error([row["entropy"] for row in method["rows"] if "entropy" in row])[0]
    apart = max(row["likelihood_apart"] for row in successor["rows"] if "likelihood_apart" in row)
    same = max(row["apart"] for row in steps["rows"] if row.get("apart") is not None)
    budgets = {part["settings"]["seconds"] for part in (method, successor)} - {None}
    assert not budgets, "the published figures are those of each part's own seconds"
    return f"""## Against other implementations

Peers and ours in one process, in turns: the same batches, as many parameters, equal seconds of the processor. The seconds are few
(the peers' own numbers of steps would take from forty minutes to many hours), so nothing here has converged, and a step's price counts as much as what it teaches.
Nothing was tuned. Means over seeds ± standard errors; times are of a busy machine.

### The method: AlexanderNekrasov/NDM

[The peer](https://github.com/{checkerboard.URL})'s checkerboard, T = {checkerboard.T}, in its units, in which the entropy is {entropy:.3f} nats. "configured" are the networks, the
optimiser and the rate of its script, {checkerboard.SECONDS["configured"]:g} seconds in place of its {checkerboard.ALL_STEPS:,} steps, {seeds(method, "configured")}; "default" its networks at the width of their class's
defaults, {checkerboard.SECONDS["default"]:g} seconds, AdamW at our rate, {seeds(method, "default")}. Ours learn the end points of their schedule, but for "its schedule", which has the
peer's fixed one. Its loss is the diffusion term alone, which is not a bound on -log p: "bound" is the sum of all
three terms, of its model evaluated by our code. Its own loss, from its own training
step, and the diffusion term of its model by our code are one number by two codes, on other examples with other noise. Samples by each one's own ancestral sampler in {checkerboard.T} steps;
"data" are fresh examples, as many.

{table(*checkerboard.shown(method["rows"]))}

What separates the bounds is the schedule, not the transformation. The peer's ends at gamma_0 = -9.2, and {checkerboard.T} steps with the
posterior's variance are too few for that: {of_method("peer, AdamW", "posterior total")} nats for the peer, {of_method("Neural, its schedule", "posterior total")} for ours with the same schedule, {of_method("Neural", "posterior total")} with learned end
points. Calibrating the variance, which is not in the peer and takes one pass of our code over {checkerboard.CALIBRATED["default"]} examples, brings the peer's trained model from {of_method("peer, AdamW", "posterior total")} to
{of_method("peer, AdamW", "calibrated total")}. With the same schedule the peer's network, which sees sines of the coordinates, puts fewer samples off the board ({of_method("peer, AdamW", "off_board")})
than our perceptron, which sees the coordinates ({of_method("Neural, its schedule", "off_board")}). And Identity, whose steps are cheaper, ends with {of_method("Identity", "calibrated total")}, Neural with {of_method("Neural", "calibrated total")}: on this board and
in these seconds F gains nothing.

{source(method)}

### Its successor: the notebook of NFDM

[The authors' notebook](https://github.com/{gaussians.URL}) on eight Gaussians; {gaussians.SECONDS:g} seconds in place of its 10^5 steps, {seeds(successor)}. NFDM also learns the noise's
standard deviation, per example and dimension, and its volatility; ours learns the mean alone. "bound" and "ODE likelihood" are nats above
the entropy, which is known: divergences from the data, the bound's with its slack. The peer's bound is its loss and the constant that it
leaves out. "our recipe" is a warm-up, a cosine, clipping and averaged weights, which ours have. Samples in {gaussians.STEPS} steps of Euler's method;
the peer's likelihood in {gaussians.GRIDS[1]} steps of Runge and Kutta's, {apart:.2g} nats at most from that in {gaussians.GRIDS[0]}.

{table(*gaussians.shown(successor["rows"]))}

In these seconds a learned path does not pay, neither the notebook's nor ours: Identity is at {of_successor("Identity", "bound_gap")} nats by its bound and Separable at
{of_successor("Separable", "bound_gap")}, Neural at {of_successor("Neural", "bound_gap")}, NFDM at {of_successor("peer", "bound_gap")}, and with our recipe at {of_successor("peer, our recipe", "bound_gap")}. Neural's steps in continuous time are the dearest.

{source(successor)}

### Samplers: azula and diffusers

The same steps, DDIM and ancestral, by [azula](https://github.com/{samplers.URL})'s samplers, by diffusers' schedulers and by `ndm.sample`, on the same networks
(random weights), {steps["settings"]["rounds"]} interleaved rounds, medians and quartiles; below 1 ours is faster. In float64 the three give the same samples from the same
random numbers: the largest difference is {same:.0e} of the largest number (diffusers' ancestral sampler adds no noise at the last step
and is left out).

{table(*samplers.shown(steps["rows"]))}

Where the network is small, `ndm.sample` is slower than both: its step costs more beyond the network. With a network for images the
difference is a few percent.

{source(steps)}
"""


#: The models whose margins come first, and the rows that say what they are worth.
HEADLINED = (
    "Levels and network, free, direct",
    "Levels, free, direct",
    "Small, free, direct",
    "Small, sigma, direct",
    "Small, sigma, ode",
    "Separable, free, direct",
    "Separable",
)
MAIN = (
    "digits-tuned", "digits-recommended", "digits-ends", "mnist-recommended", "table-tuned", "table-recommended", "table-density",
    "pinwheel-tuned", "pinwheel-recommended",
    "checkerboard-tuned", "checkerboard-recommended", "checkerboard-sigma", "cifar10-recommended",
    "pinwheel", "checkerboard", "table", "digits", "digits-unclipped", "mnist14", "mnist", "mnist-long", "mnist-slow-ends",
    "mnist-half-rate", "mnist-unclipped", "cifar10", "cifar10-slow",
)  # fmt: skip


def comparisons() -> list[str]:
    """The rows of suite.py that have results, if there are any."""
    found, samples = figures.results(), quality.results()
    if not found:
        return []
    environments = [one["environment"] for models in found.values() for of in models.values() for one in of]
    dates = sorted({e["date"] for e in environments})
    e = environments[-1]
    parts = "\n".join(figures.markdown(row, models) for row, models in found.items())
    margins = "\n\n".join(
        f"### {model}, against Identity\n\n{figures.headline(MAIN, model)}"
        for model in HEADLINED
        if any(model in found.get(row, {}) for row in MAIN)
    )
    plots = "\n".join(
        f"![the bound against {what}](results/suite/bound-by-{name}.png)"
        for name, what in (("steps", "T"), ("seconds", "seconds of training"), ("share", "the size of F"))
        if (figures.FOLDER / f"bound-by-{name}.png").exists()
    )
    text = f"""## Controlled comparisons

In a row all models have as many parameters as its first one, the reference, to within half a percent (F's included), but for those
that are said to be larger, and every one was trained for the same seconds of one core, in one process, in turns. The bound is that of
the test split, lower is better. The last columns are differences from the reference, paired by example: at the end of the equal
times, and with the averaged weights at the last step that all models of the row have reached, where the faster ones are not at the end
of their learning rates' schedule. Errors over S seeds: the root of s²/S + the mean of e², with s the spread between seeds and e the
error over test examples in one.

**The rows that end in "recommended" or "tuned", `digits-ends` and `checkerboard-sigma` have what is recommended for all models now**: gradients clipped at 20, and a learned schedule
whose form m between the end points is trained to lower the variance of the bound's estimate (`ndm.LearnedSchedule`). The other
rows are older: there m got the gradient of the bound, which in continuous time does not depend on it, and wandered. "m by the
bound" is that beside the new. Rows with the name of a data set and nothing more, and all of the recommended but those of MNIST and CIFAR-10, were tuned: each model on the same grid, by validation data, in a part of
the time that the row has, the "tuned" ones in all of it; the trials are in `results/suite/tuning--*.json`. `digits-tuned` came out with the rates of `digits-recommended`: the two are one comparison
with ten and five seeds, of which the ten had not been used for anything before. All bounds are in `results/suite/`. "diagonal" is a variance per dimension, calibrated after the
training by one pass over training examples.

"Levels" is an F that looks up a learned number for each level of a pixel (`ndm.networks.LevelTable`), "network" one that also sees the other
pixels; "free" is the gate, "direct" the reverse process (`ndm.DirectDenoiser`). For continuous data there are no levels to look up; "small" is an F of 2% of the parameters
there, with two terms and 0.3 of the learning rate, 0.1 in the tuned rows. In digits-ablations every model below "Recommended" is the recommended one with one thing
changed, and all differences are from Identity.

**In the older rows of points and tables the denoisers beside F have another shape than Identity's.** Their number of parameters was met by trading the width
of a perceptron's blocks for that of its embedding of the noise level: beside Identity's 64 and 64 the small F of the plane has 56 and 80, beside
96 and 64 that of the table has 102 and 48. The tuned rows and `table-density` have 63 and 64, 92 and 70. With 56 and 80 `checkerboard-tuned` was +0.005 ± 0.012 at T = 10 and +0.034 ± 0.015 in continuous time
(five seeds, 20 to 24): what looked like harm by F was in good part that of a narrower denoiser. Every result has its widths in `facts.widths`; run today, the older rows
have the new ones. Rows of images were never concerned.

{margins}

"errors" is the smaller of the two margins at equal time in its standard errors: above 2 it is hardly chance, below 0 the reference is better.

{plots}

{parts}
`python benchmarks/suite.py`, {" to ".join(dict.fromkeys((dates[0], dates[-1])))}, Python {e["python"]}, PyTorch {e["torch"]}, {e["machine"]} with {e["cores"]} cores, {e["threads"]} thread.
"""
    parts_of_readme = [text]
    if found_again := figures.results(RESULTS / "again"):
        parts_of_readme.append(again(found, found_again))
    if grids := gridding.results():
        parts_of_readme.append(best_steps(grids))
    if not samples:
        return parts_of_readme
    tables = "\n".join(quality.markdown(row, models) for row, models in samples.items())
    drawn = (figures.FOLDER / "quality-by-steps.png").exists()
    plot = "![the quality of samples against the number of steps](results/suite/quality-by-steps.png)" if drawn else ""
    return [
        *parts_of_readme,
        f"""## The quality of samples

Of the models of the controlled comparisons, with the weights at equal time. Errors over seeds are as for the bounds; differences from the
reference are paired by seed.

{plot}

{tables}
`python benchmarks/suite.py --samples`.
""",
    ]


def best_steps(found: figures.Rows) -> str:
    """The bounds of the rows' models at few steps, as `suite.py --grids` measured them."""
    tables = "\n".join(gridding.markdown(row, models) for row, models in found.items())
    how = next(iter(next(iter(found.values())).values()))[0]["settings"]["grids"]
    return f"""## Even steps, or the best ones?

The same trained models at few steps, with the variance per dimension that is calibrated for these steps: even steps in the schedule's time, and
the ones whose bound on the first {how["examples"]:,} training examples is lowest, among {how["candidates"]} even times (`ndm.method.grids`). How the noise levels are spread over
time does not matter to a bound in continuous time, and is not trained to make few even steps good: they are as good as that happens to be. Differences are
from the reference with the same kind of steps.

{tables}
`python benchmarks/suite.py --grids ROW`
"""


def again(before: figures.Rows, now: figures.Rows) -> str:
    """The rows that were run again, as `suite.py --again results/again ROW` tells them."""
    parts = []
    for row, models in now.items():
        seeds = [one["settings"]["seed"] for one in next(iter(models.values()))]
        parts.append(repeating.markdown(row, repeating.repeated(before[row], models, seeds)))
    tables = "\n".join(parts)
    return f"""## Do the figures come out again?

A budget in seconds has room for another number of steps on another machine, or on this one at another load, and a training differs
with its rounding. So rows were run again, in a fresh clone, from the training on, with the same seeds and the learning rates that the
tuning had chosen. The reference's bounds, and the others' differences from it at equal time, before and again:

{tables}
`python benchmarks/suite.py --again FOLDER {" ".join(now)}`
"""


if __name__ == "__main__":
    README.write_text(
        "\n".join(
            [
                INTRO,
                *comparisons(),
                oracles(),
                reverse_variance(),
                cost(),
                images("mnist", "MNIST at 28x28"),
                images("cifar10", "CIFAR-10 (JPEG) at 32x32"),
                vdm(),
                peers(),
                loop(),
                precision(),
                newcomer(),
                score(),
                likelihood(),
                anomalies(),
                density.section(density.read_results()),
                dynamics(),
                bound_on_toys(),
                import_time(),
            ]
        )
    )
    print(README)
