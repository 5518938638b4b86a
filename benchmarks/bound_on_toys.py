"""The bound is a bound: NELBO minus the exact entropy, for every transformation, number of steps and reverse variance.

The toys' densities are known, so the mean over test points of NELBO(x) + log p(x), whose expectation is a
Kullback-Leibler divergence plus the bound's slack, must not fall below zero. Each row is one trained model; the last
column is the smallest of its gaps in units of its standard error. A negative one beyond -3 would be a bug.

    python benchmarks/bound_on_toys.py [--training-steps 1000] [--test 2000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from bench import mean_and_error, save, table, train

import ndm
from ndm import data as toys
from ndm.evaluation import bound_per_example
from ndm.networks import ResidualMLP

STEPS = (1, 5, 10, 50, 1000, None)
CALIBRATED = ("isotropic", "diagonal", "full")


def mlp(hidden: int = 64, depth: int = 2, heads: int = 1, level: bool = True) -> ResidualMLP:
    return ResidualMLP(2, hidden=hidden, depth=depth, heads=heads, level=level)


class LearnedScale(ndm.Part):
    """a(gamma) = 1 + w sigmoid(gamma)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, gamma: torch.Tensor) -> torch.Tensor:
        return 1 + self.w * torch.sigmoid(gamma)


def models() -> dict[str, tuple[Callable[[], dict], int | None]]:
    """Name -> (what to build a model of, T of the bound it is trained on)."""
    small = {"hidden": 32, "depth": 1}
    return {
        "Identity": (lambda: {"transform": ndm.Identity()}, None),
        "Identity, eta learned": (
            lambda: {"transform": ndm.Identity(), "volatility": ndm.LearnedVolatility()},
            None,
        ),
        "Identity, variance learned": (lambda: {"transform": ndm.Identity(), "reverse_variance": "learned"}, 10),
        "Scale": (lambda: {"transform": ndm.Scale(LearnedScale())}, None),
        **{
            f"Neural, {gate}": (lambda gate=gate: {"transform": ndm.Neural(mlp(**small), gate=gate)}, None)
            for gate in ("sigma2", "sigma", "anchored", "free")
        },
        **{
            f"Separable, {basis}": (
                lambda basis=basis: {
                    "transform": ndm.Separable(mlp(heads=4, level=False, **small), terms=4, basis=basis, gate="sigma")
                },
                None,
            )
            for basis in ("cosine", "legendre", "bumps")
        },
        "Neural, variance predicted": (
            lambda: {
                "transform": ndm.Neural(mlp(**small)),
                "denoiser": ndm.Denoiser(mlp(heads=2)),
                "reverse_variance": "predicted",
            },
            10,
        ),
        "Neural, direct": (
            lambda: {"transform": ndm.Neural(mlp(**small)), "denoiser": ndm.DirectDenoiser(mlp())},
            None,
        ),
    }


def build(parts: dict, data: toys.Data) -> ndm.NDM:
    return ndm.NDM(
        **{
            "schedule": ndm.LinearSchedule(gamma_min=-8.0, gamma_max=5.0),
            "denoiser": ndm.Denoiser(mlp()),
            "decoder": ndm.GaussianDecoder(),
            "standardize": ndm.Standardize.fit(data.train),
        }
        | parts
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-steps", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000, help="test points")
    parser.add_argument(
        "--toys", nargs="+", default=["EightGaussians", "TwoMoons", "Pinwheel", "Checkerboard", "SwissRoll"]
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, shown = [], []
    for toy in options.toys:
        data = getattr(toys, toy)()
        test = data.test[: options.test]
        log_p = data.log_prob(test).double()
        for name, (parts, bound_steps) in models().items():
            model = train(
                lambda parts=parts, data=data: build(parts(), data),
                data.train, steps=options.training_steps, bound_steps=bound_steps, seed=0,
            )  # fmt: skip
            here = list(measure(model, data.train[:2000], test, log_p, {"toy": toy, "model": name}))
            rows += here
            ten = {r["variance"]: r["gap"] for r in here if r["steps"] == 10}
            shown.append([toy, name, *(f"{ten[v]:.3f}" for v in ("own", *CALIBRATED)),
                          f"{here[-1]['gap']:.3f}", f"{min(r['gap'] / r['stderr'] for r in here):+.1f}"])  # fmt: skip
            print(shown[-1], flush=True)
    header = ["toy", "model", "T = 10, own", *(f"T = 10, {c}" for c in CALIBRATED), "continuous", "least gap / error"]
    print(table(shown, header))
    worst = min(rows, key=lambda r: r["gap"] / r["stderr"])
    print(
        f"\n{len(rows)} bounds; the least is {worst['gap']:+.4f} ± {worst['stderr']:.4f} nats from the entropy: {worst}"
    )
    print(save("bound_on_toys", rows, vars(options)))


def measure(model: ndm.NDM, train_data: torch.Tensor, test: torch.Tensor, log_p: torch.Tensor, about: dict):
    """NELBO minus entropy, in nats, on the same points, for every T and reverse variance."""
    for steps in STEPS:
        for variance in ("own", *CALIBRATED) if steps is not None and steps <= 50 else ("own",):
            model.uncalibrate()
            if variance != "own":
                some = train_data[: max(20, 50_000 // steps)]
                model.calibrate(some, steps, variance, generator=torch.Generator().manual_seed(0))
            total = bound_per_example(model, test, steps, seed=0, batch_size=2000)["total"]
            gap, error = mean_and_error(total + log_p)
            yield about | {"steps": steps, "variance": variance, "gap": gap, "stderr": error}


if __name__ == "__main__":
    main()
