"""``ndm import``: make a run folder of a trained diffusers model, which the other commands take like any other run."""

from __future__ import annotations

import platform
import shlex
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndm._internal.signals import set_stop_message_of
from ndm.cli.messages import STOPPED, say
from ndm.cli.options import add_allow, find_allowed
from ndm.cli.parsing import Parser, without_data

if TYPE_CHECKING:
    from ndm.data.base import Data
    from ndm.model import NDM
    from ndm.training import Run

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="ndm import",
        description="Make a run folder of a trained diffusers model of pixels, for evaluate, score, sample and report.",
    )
    parser.add_argument(
        "path", metavar="PATH", help="the folder of a pipeline; of its files JSON and safetensors are read"
    )
    parser.add_argument("--out", metavar="RUN", required=True, help="the folder to write, new or empty")
    parser.add_argument("--data", default="Images", metavar="NAME", help="class of the data (default: %(default)s)")
    parser.add_argument(
        "--data.path",
        metavar="PATH",
        help="path of the images that the model was trained on, or of others to evaluate it on; any --data.x of `ndm "
        "train images`. By default they have the size and the channels of the network",
    )
    parser.add_argument(
        "--decoder", choices=("auto", "discretized"), default="auto",
        help="p(x | z_0): auto, DDPM's around the denoised image, or for flow matching discretized; discretized, VDM's "
        "around z_0 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-clip", action="store_true", help="do not clip the estimate of the image")
    add_allow(parser)
    return parser


def run(arguments: list[str]) -> None:
    command = shlex.join(["ndm", "import", *arguments])
    arguments, overrides = without_data(arguments)
    options = _parser().parse_args(arguments)
    find_allowed(options.allow)
    out = Path(options.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out.")
    set_stop_message_of(out, f"the run is in {out}.", STOPPED["import"])

    from ndm.configs.configuration import given_data  # with PyTorch
    from ndm.training.checks import check
    from ndm.training.options import TrainingOptions

    model = _model(options.path, options.decoder, not options.no_clip)
    data, section = given_data(
        options.data, [*_image_options(model, options.data, overrides), *overrides], options.allow
    )
    _check_kind(model, data, options.data)
    if model.num_classes > 0 and data.labels("test") is None:
        raise ValueError(
            f"The network has {model.num_classes} classes, and the data have no labels: give --data.path a folder with "
            "a subfolder for each class, or a Parquet file with labels."
        )
    check(model, data, TrainingOptions(labels=model.num_classes > 0))
    _write(out, model, data, f"# Imported from {options.path!r}; the model is in model/.\n{section}", command)
    name = shlex.quote(str(out))
    say(f"the run is in {out}")
    steps = getattr(model.schedule, "last_index", None)
    say(f"next: ndm evaluate {name}" + ("" if steps is None else f" --steps {steps} --variances own"))


def _model(path: str, decoder: str, clip: bool) -> NDM:
    """The model of a pipeline.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it cannot be read, or is of latents.
    """
    from ndm.method.decoders import DiscretizedDecoder
    from ndm.networks.pretrained import from_diffusers

    chosen = DiscretizedDecoder(256, ends=True) if decoder == "discretized" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = from_diffusers(Path(path), clip=None if clip else False)
    if model.decoder.levels is None:
        raise ValueError(
            f"The model in {path} is of latents, not of pixels: its likelihood cannot be that of images. In Python, "
            "ndm.from_diffusers gives the density of its latents."
        )
    if chosen is not None:
        model.decoder = chosen
    return model


def _image_options(model: NDM, name: str, overrides: Sequence[str]) -> list[str]:
    """The options for images of the network's size and channels, unless they are given."""
    net: Any = model.denoiser.net
    wanted = {"--data.size": net.sample_size, "--data.channels": net.channels}
    given = {option.partition("=")[0] for option in overrides}
    known = {k: v for k, v in wanted.items() if name == "Images" and k not in given and isinstance(v, int)}
    return [word for option, value in known.items() for word in (option, str(value))]


def _check_kind(model: NDM, data: Data, name: str) -> None:
    """Raise a ValueError unless the data are images with the network's channels and levels."""
    net: Any = model.denoiser.net
    if data.levels != model.decoder.levels or len(data.shape) != 3 or data.shape[0] != net.channels:
        levels = "continuous values" if data.levels is None else f"{data.levels} levels"
        raise ValueError(
            f"The network takes images of {net.channels} channels and {model.decoder.levels} levels, but {name} has "
            f"examples of shape {tuple(data.shape)} and {levels}: choose other data."
        )


def _write(out: Path, model: NDM, data: Data, config: str, command: str) -> None:
    """Write the run folder, all of it or nothing."""
    import torch

    import ndm
    from ndm.storage.atomic import atomic_folder
    from ndm.training import Run
    from ndm.training.facts import digest_of_facts

    facts = {
        "ndm": ndm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as fresh:
        run: Run = Run(fresh)
        run.write_data(data)
        run.write_config(config)
        run.write_environment(facts)
        model.save_pretrained(run.model, card={"shape": list(data.shape), "data": digest_of_facts(run.data)})
