"""Options shared by several commands, and their interpretation."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm.cli.parsing import positive, seed, workers
from ndm.cli.process import collect_garbage

if TYPE_CHECKING:
    import torch

    from ndm.inference.options import SamplerOptions
    from ndm.method.process import Process
    from ndm.model import NDM
    from ndm.training import Run

__all__ = [
    "add_allow",
    "add_common",
    "add_divergence",
    "add_sampling",
    "add_workers",
    "check_guidance",
    "find_allowed",
    "load_model",
    "precision",
    "require_run",
    "sampler_of",
    "sampling_options",
]


def add_divergence(parser: argparse.ArgumentParser) -> None:
    """Add the option for the divergence of the likelihood."""
    parser.add_argument(
        "--divergence", choices=("auto", "exact", "hutchinson"), default="auto",
        help="divergence of the likelihood: exact, or estimated by probes (default: auto, exact up to 64 columns of a "
        "table and up to 16 dimensions of other data)",
    )  # fmt: skip


def add_sampling(parser: argparse.ArgumentParser, steps: int | None, prefix: str = "--") -> None:
    """Add the options of a sampler; the options for its steps start with a prefix.

    Without ``steps`` the defaults are those of :func:`ndm.inference.sampling.default_sampler`.
    """
    own = "ode with the solver dpm++2m, or ancestral for a model without an ODE" if steps is None else "ancestral"
    parser.add_argument(
        "--method", default=None if steps is None else "ancestral", help=f"ancestral, ddim, ode or sde (default: {own})"
    )
    usual = "32, or with --method or --eta or without an ODE 100" if steps is None else "%(default)s"
    parser.add_argument(
        f"{prefix}steps", type=positive, default=steps, metavar="T", help=f"number of sampling steps (default: {usual})"
    )
    parser.add_argument(
        f"{prefix}solver", dest="sampling_solver", metavar="NAME",
        help="solver of the sampling steps: for ode euler, midpoint, heun, rk4 or dpm++2m (default: heun), for sde "
        "euler-maruyama, dpm++2m, euler or srk (default: euler-maruyama)",
    )  # fmt: skip
    parser.add_argument("--eta", type=float, help="volatility (default: the model's own)")
    parser.add_argument(
        f"{prefix}spacing", dest="sampling_spacing", choices=("time", "gamma"),
        help="spacing of the sampling steps: even in time or in gamma, the log noise-to-signal ratio (default: gamma "
        "for a learned schedule that was trained in continuous time, else time)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="weight of classifier-free guidance, for a conditional model"
    )


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Convert the options of :func:`add_sampling` to options of ndm.sample."""
    chosen = {
        "method": options.method,
        "solver": options.sampling_solver,
        "eta": options.eta,
        "guidance": options.guidance,
        "spacing": options.sampling_spacing,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def sampler_of(model: Process, options: argparse.Namespace) -> SamplerOptions:
    """The sampler of the options of :func:`add_sampling` without ``steps``, with the defaults for a model."""
    from ndm.inference.sampling import default_sampler

    steps = {} if options.steps is None else {"steps": options.steps}
    return default_sampler(model, **sampling_options(options), **steps)


def add_common(parser: argparse.ArgumentParser, seeded: str = "random seed") -> None:
    parser.add_argument("--seed", type=seed, default=0, help=f"{seeded} (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=250, metavar="N", help="batch size (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=("32", "bf16"), default="32", help="precision of the networks (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    add_allow(parser)


def add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE",
        help="allow configurations and models to name classes of this module, which runs its code; it is searched on "
        "Python's path and in the current folder",
    )  # fmt: skip


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=workers, metavar="N",
        help="number of processes on the CPUs of this computer, each with one thread; the result is the same for all N "
        "(default: one process with PyTorch's number of threads)",
    )  # fmt: skip


def find_allowed(allow: Sequence[str]) -> None:
    """Make the allowed modules importable from the current folder."""
    if allow:
        importlib.import_module("ndm.configs.allowing").find_here(allow)


def precision(name: str, device: torch.device) -> AbstractContextManager:
    import torch

    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


def check_guidance(run: Run, guidance: float | None) -> None:
    """Raise an error if guidance is requested for a model trained without label dropout."""
    if not guidance:
        return
    from ndm.configs.recorded import label_dropout

    if label_dropout(run) == 0:
        raise ValueError(
            f"--guidance needs a model trained with label dropout, but {run.path} was trained without it: train with "
            "--training.labels true --training.label_dropout 0.1, or leave --guidance out."
        )


def require_run(path: str | Path) -> Run:
    """Check that a folder is a run with a trained model, before PyTorch is imported.

    Raises:
        FileNotFoundError: it is not.
        ValueError: the model was trained on other data than the run.
    """
    from ndm.training import Run

    run = Run(Path(path))
    run.require_model()
    return run


def load_model(run: Path, device: torch.device, allow: Sequence[str] = ()) -> NDM:
    """Load the trained model of a run onto a device."""
    model = require_run(run).model
    from ndm.model import NDM

    loaded = NDM.from_pretrained(model, allow).to(device).eval()
    collect_garbage()
    return loaded
