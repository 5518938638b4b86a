"""Read a configuration, apply command-line overrides, and build the model, the data and the options.

Parsing uses jsonargparse, with two changes: a part replaced by one of another class inherits no arguments, and error
messages for unknown names suggest the closest valid ones.
"""

from __future__ import annotations

import argparse
import random
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

import ndm
import ndm.data
from ndm import configs
from ndm.configs.allowing import allowing, as_modules, require_classes, require_harmless
from ndm.configs.early import pairs
from ndm.configs.explaining import UNLISTED, explain
from ndm.configs.filling import fill_from_data
from ndm.configs.reading import forget_other_classes, has_section, import_networks, read_tree, take_texts
from ndm.configs.yamltext import MODE, dump
from ndm.data.base import Data
from ndm.method.conditionals import column_numbers
from ndm.method.decoders import Decoder, GaussianDecoder
from ndm.method.denoisers import BaseDenoiser, Denoiser, DirectDenoiser
from ndm.method.latents import Latent
from ndm.method.mixed import MixedDecoder
from ndm.method.mixed_denoiser import MixedDenoiser, outputs_for
from ndm.method.noise import Noise
from ndm.method.schedules import Schedule
from ndm.method.standardization import Standardize
from ndm.method.transforms import Transform
from ndm.method.variances import ReverseVariance
from ndm.method.volatility import ConstantVolatility, LearnedVolatility
from ndm.model import NDM
from ndm.networks import ResidualMLP
from ndm.storage.allowance import Allowance
from ndm.storage.memory import free, require
from ndm.training.automatic import add_base, on_cpu, resolve
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["Built", "Configuration", "given_data", "read_data"]

#: Advice for a model that is too large.
SMALLER = "make it smaller, for example with a smaller `hidden`, `channels` or `depth`"

USAGE = """ndm train CONFIG [--out RUN] [--resume] [--tiny] [--print_config] [--a.b VALUE ...]

  CONFIG          a file, or a shipped configuration:
{names}
  --out RUN       the folder to write, new or empty (default: runs/CONFIG)
  --resume        resume the run in --out from its last checkpoint
  --tiny          train the small version of the configuration, which runs on any computer
  --print_config  print the full configuration and exit
  --allow MODULE  allow the configuration to name classes of this module, which runs its code
  --a.b VALUE     override any field, with a class by its name:
                    --trainer.max_steps 2000
                    --model.schedule LinearSchedule --model.schedule.gamma_min -10
                    --model.transform Neural --model.transform.net UNet --model.transform.net.channels 1
                  --model.transform.help Neural lists the arguments of a class"""


def compose(
    schedule: Schedule,
    transform: Transform,
    denoiser: BaseDenoiser,
    decoder: Decoder | None = None,
    reverse_variance: str | ReverseVariance = "posterior",
    volatility: float | ConstantVolatility | LearnedVolatility = 1.0,
    standardize: Standardize | None = None,
    noise: Noise | None = None,
    latent: Latent | None = None,
) -> NDM:
    """The model.

    Args:
        schedule: noise schedule, t -> noise level.
        transform: data transformation F(x, gamma); Identity gives a conventional diffusion model.
        denoiser: denoiser of the reverse process.
        decoder: decoder p(x | z_0); null for GaussianDecoder, for continuous data.
        reverse_variance: variance of the reverse process: posterior, learned, predicted, or a class.
        volatility: volatility eta of the reverse process: a positive number or a class.
        standardize: set by training.standardize.
        noise: learned standard deviation of the forward process: null for that of the schedule, or a class.
        latent: latent variable that the denoiser and the noise are given: null for none, or GaussianLatent.
    """
    return NDM(
        schedule, transform, denoiser, decoder, reverse_variance, volatility, standardize, noise=noise, latent=latent
    )


@dataclass(frozen=True)
class Built:
    """The objects built from a configuration."""

    model: NDM
    data: Data
    training: TrainingOptions
    trainer: TrainerOptions
    seed: int
    notes: tuple[str, ...] = ()


class Configuration:
    """A configuration with every default filled in.

    Args:
        parser: the parser that read it.
        values: the parsed values.
        notes: messages about it for the user.
        allow: additional modules whose classes it may use.
    """

    def __init__(
        self, parser: ArgumentParser, values: Namespace, notes: tuple[str, ...] = (), allow: tuple[str, ...] = ()
    ) -> None:
        self.parser = parser
        self.values = values
        self.notes = notes
        self.allow = allow

    @classmethod
    def read(
        cls, name: str, overrides: Sequence[str] = (), tiny: bool = False, allow: Iterable[str] = ()
    ) -> Configuration:
        """Read a configuration; on a CPU (no GPU, or ``trainer.accelerator: cpu``) apply its section ``cpu``.

        Args:
            name: path, or name of a shipped configuration.
            overrides: ``--a.b value`` or ``--a.b=value``, as on the command line.
            tiny: apply the section ``tiny``.
            allow: additional modules whose classes it may use. Using a class imports, and so runs, its module; other
                modules are not imported.

        Raises:
            ValueError: the file cannot be read, or the file or the overrides contain an invalid name or value.
        """
        allow = as_modules(allow)
        with allowing(allow):
            return cls._read(name, overrides, tiny, allow)

    @classmethod
    def _read(cls, name: str, overrides: Sequence[str], tiny: bool, allow: tuple[str, ...]) -> Configuration:
        whole = read_tree(name, tiny)
        written = whole.get("trainer", {}).get("accelerator", "auto")
        cpu = not tiny and on_cpu(str(_last(overrides, "trainer.accelerator") or written))
        small = cpu and has_section(name, "cpu")
        tree = read_tree(name, tiny, cpu)
        parser = _parser()
        note = f"no GPU is used: the section cpu of the configuration {name} overrides its other sections"
        return cls(parser, _parsed(parser, tree, overrides), (note,) if small else (), allow)

    @staticmethod
    def help(overrides: Sequence[str], allow: Iterable[str] = ()) -> NoReturn:
        """Print the requested help and exit."""
        parser = _parser()
        try:
            with allowing(allow):
                parser.parse_args(list(overrides))
        except Exception as error:
            explain(str(error), parser)
        raise SystemExit(0)

    @property
    def text(self) -> str:
        """The complete configuration as YAML; reading it gives the same configuration."""
        return self.parser.dump(self.values.clone(with_meta=False), skip_unset=False)

    @property
    def devices(self) -> tuple[int, int]:
        """Number of devices per node, and number of nodes."""
        return self.values.trainer.devices, self.values.trainer.num_nodes

    def build(self, data: Data | None = None) -> Built:
        """Build the objects. The seed is set first, so that the same configuration gives the same initial weights.

        Args:
            data: a data set to use in the place of the configuration's.

        If a part's ``features``, ``channels`` or ``shape`` are null, they are set from the data. If ``hidden`` is null,
        or a training option is ``auto``, it is set by :mod:`ndm.training.automatic`.

        Raises:
            ValueError: a part rejects its arguments, or the parts are incompatible.
        """
        with allowing(self.allow):
            return self._build(data)

    def _build(self, data: Data | None = None) -> Built:
        seed = self.values.seed
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        data = _data(self.values.data) if data is None else data
        fill_from_data(self.values.model, data)
        try:
            with Allowance(free(), "The model", SMALLER):
                built = self.parser.instantiate(self.values)
        except (ValueError, TypeError) as error:
            explain(str(error), self.parser)
        except Exception as error:  # constructors raise many exception types for invalid values
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"The model cannot be built ({reason:.300}): correct its parts' arguments.") from error
        parts = dict(vars(built.model))
        training, trainer, chosen = resolve(built.training, built.trainer, data)
        continuous = data.levels is None and getattr(parts["decoder"], "levels", None) is None
        if data.encoding is not None and parts["standardize"] is None:
            parts["standardize"] = data.encoding
            special = data.encoding.discrete or data.given or training.conditionals == "any"
            if special and isinstance(parts["decoder"], (GaussianDecoder, type(None))):
                chosen = _for_several_kinds(parts, data, training.conditionals) + chosen
        elif parts["standardize"] is None and training.standardize and continuous:
            parts["standardize"] = _standardize(data)
        if on_cpu(trainer.accelerator):
            _require_room(parts)
        training, started = add_base(training, parts["denoiser"], data, parts["standardize"], seed)
        self._keep_numbers(training, trainer)
        return Built(compose(**parts), data, training, trainer, seed, (*self.notes, *filter(None, (chosen, started))))

    def _keep_numbers(self, training: TrainingOptions, trainer: TrainerOptions) -> None:
        """Replace ``auto`` in the configuration by the chosen values."""
        for section, options in (("training", training), ("trainer", trainer)):
            for name in (field.name for field in fields(options)):
                if self.values[f"{section}.{name}"] == "auto":
                    self.values[f"{section}.{name}"] = getattr(options, name)


def _for_several_kinds(parts: dict[str, Any], data: Data, conditionals: str) -> str:
    """Replace decoder and denoiser by those for a table with atoms, with the network's width and depth."""
    assert data.encoding is not None
    layouts, net = data.encoding.layouts(), getattr(parts["denoiser"], "net", None)
    parts["decoder"] = MixedDecoder(layouts)
    if isinstance(parts["denoiser"], (Denoiser, DirectDenoiser)) and isinstance(net, ResidualMLP):
        context = 2 * len(layouts) if conditionals == "any" else 0
        own = net.config()["init_args"] | {"heads": 1, "outputs": outputs_for(layouts), "context": context}
        given = column_numbers(data.encoding, data.given) if data.given else None
        parts["denoiser"] = MixedDenoiser(ResidualMLP(**own), layouts, None, conditionals, given)
    return "columns of several kinds: the model's decoder is a MixedDecoder and its denoiser a MixedDenoiser; "


def _require_room(parts: dict[str, Any]) -> None:
    """Raise an error if weights, gradients and Adam's two averages do not fit into the memory."""
    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    size = sum(p.nbytes for module in modules for p in module.parameters())
    require(3 * size, "To train the model", SMALLER)


def _last(overrides: Sequence[str], name: str) -> str | None:
    """Return the last override of the option ``--name``; None if it is not given."""
    values = [value for key, value in pairs(overrides) if key == name]
    return values[-1] if values else None


def read_data(path: Path, overrides: Sequence[str] = (), allow: Iterable[str] = ()) -> Data:
    """Build the data set of a run's configuration.

    Args:
        path: path of the configuration.
        overrides: ``--data.x value`` or ``--data.x=value``, as on the command line.
        allow: additional modules whose classes it may use.

    Raises:
        FileNotFoundError: the configuration does not exist.
        ValueError: the configuration is damaged or has no data set, or an override is invalid.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The data set of the run is unknown, because {path} does not exist.")
    with allowing(allow):
        tree = read_tree(str(path))
        if "data" not in tree:
            raise ValueError(f"{path} does not contain the data set of the run.")
        parser = _bare_parser()
        parser.add_subclass_arguments(Data, "data", required=True)
        values = _parsed(parser, {"data": tree["data"]}, overrides)
        try:
            data: Data = parser.instantiate(values).data
        except Exception as error:
            explain(str(error), parser)
    return data


def given_data(name: str, overrides: Sequence[str], allow: Iterable[str] = ()) -> tuple[Data, str]:
    """Build a data set from options.

    Args:
        name: the class of the data set.
        overrides: ``--data.x value`` or ``--data.x=value``, as on the command line.
        allow: additional modules whose classes it may use.

    Returns:
        The data set, and the configuration with its section only, in YAML, for :func:`read_data`.

    Raises:
        FileNotFoundError: the data do not exist.
        ValueError: an option is invalid.
    """
    with allowing(allow):
        parser = _bare_parser()
        parser.add_subclass_arguments(Data, "data", required=True)
        values = _parsed(parser, {"data": {"class_path": name}}, overrides)
        try:
            data: Data = parser.instantiate(values).data
        except Exception as error:
            explain(str(error), parser)
        return data, parser.dump(values.clone(with_meta=False), skip_unset=False)


def _data(description: Any) -> Data:
    """Build the data set of the section ``data``."""
    parser = _bare_parser()
    parser.add_subclass_arguments(Data, "data")
    try:
        data: Data = parser.instantiate(parser.parse_object({"data": description})).data
    except Exception as error:
        explain(str(error), parser)
    return data


def _parsed(parser: ArgumentParser, tree: dict[str, Any], overrides: Sequence[str]) -> Namespace:
    """Parse a configuration with the overrides applied."""
    require_harmless(tree, overrides)
    import_networks(f"{tree} {overrides}")
    forget_other_classes(tree, overrides)
    left = take_texts(tree, overrides)
    try:
        # As text: reading the file again would restore the removed arguments.
        values = parser.parse_args(["--config", dump(tree), *left])
    except Exception as error:  # jsonargparse raises several exception types
        explain(str(error), parser)
    require_classes(values)
    return values


def _parser() -> ArgumentParser:
    parser = _bare_parser(
        usage=USAGE.format(
            names=textwrap.indent(textwrap.fill(", ".join(configs.names()), 98, break_on_hyphens=False), " " * 20)
        ),
        description="Train a model from a configuration, and write the results to a folder.",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of the initial weights, the order of the data, times and noise",
    )
    parser.add_function_arguments(compose, "model")
    parser.add_subclass_arguments(Data, "data", required=True)
    parser.add_class_arguments(TrainingOptions, "training")
    parser.add_class_arguments(TrainerOptions, "trainer")
    for action in parser._actions:
        if action.dest.endswith(".help") or action.dest in UNLISTED:
            action.help = argparse.SUPPRESS  # hidden to keep the help short
    return parser


def _bare_parser(**options: Any) -> ArgumentParser:
    """Create a parser that only has the configuration argument."""
    for package in (ndm, ndm.data):
        for name in package.__all__:
            if name[:1].isupper():  # not from_diffusers, which would import diffusers
                getattr(package, name)  # jsonargparse only finds imported classes
    parser = ArgumentParser(prog="ndm train", exit_on_error=False, allow_abbrev=False, parser_mode=MODE, **options)
    parser.add_argument("--config", action="config", help="read before the other options; the same as CONFIG")
    return parser


def _standardize(data: Data) -> Standardize:
    if not torch.isfinite(data.train).all():
        raise ValueError("In the train split: The data contain NaN or infinite values; remove or replace them.")
    return Standardize.fit(data.train)
