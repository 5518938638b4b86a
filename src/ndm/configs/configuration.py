"""A configuration: read, overridden from the command line, and built into a model, data and options.

jsonargparse does the work. Around it are two things of our own: a part that is replaced by one of another class takes
no argument over from the old one, and wrong names are answered with the nearest right ones.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import math
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader
from torch import nn

import ndm.data
import ndm.networks
from ndm import configs
from ndm.data import Data
from ndm.decoders import Decoder
from ndm.denoisers import BaseDenoiser
from ndm.model import NDM
from ndm.networks import Backbone
from ndm.process import ConstantVolatility, LearnedVolatility, Standardize
from ndm.schedules import Schedule
from ndm.training import TrainerOptions, TrainingOptions
from ndm.transforms import Transform
from ndm.variances import ReverseVariance

__all__ = ["Built", "Configuration", "read_data"]

USAGE = """ndm train CONFIG [--out RUN] [--resume] [--tiny] [--print_config] [--a.b VALUE ...]

  CONFIG          a file, or a shipped configuration:
{names}
  --out RUN       the folder to write, new or empty (default: runs/CONFIG)
  --resume        go on with the run in --out from its last checkpoint
  --tiny          the small version that a configuration has of itself, to see it run on any computer
  --print_config  print the full configuration, and train nothing
  --a.b VALUE     override any field, with a class by its name:
                    --trainer.max_steps 2000
                    --model.schedule LinearSchedule --model.schedule.gamma_min -10
                    --model.transform Neural --model.transform.net UNet --model.transform.net.channels 1
                  --model.transform.help Neural says what a class takes"""


def compose(
    schedule: Schedule,
    transform: Transform,
    denoiser: BaseDenoiser,
    decoder: Decoder | None = None,
    reverse_variance: str | ReverseVariance = "posterior",
    volatility: float | ConstantVolatility | LearnedVolatility = 1.0,
    standardize: Standardize | None = None,
) -> NDM:
    """The model.

    Args:
        schedule: t -> noise level.
        transform: F(x, gamma), what makes the model a neural diffusion model; Identity makes it a conventional one.
        denoiser: the reverse process.
        decoder: p(x | z_0): null is GaussianDecoder, for continuous data.
        reverse_variance: posterior, learned, predicted, or a class.
        volatility: eta, a positive number or a class.
        standardize: set by training.standardize.
    """
    return NDM(schedule, transform, denoiser, decoder, reverse_variance, volatility, standardize)


#: The last word of an option's name, and the base of the classes that it may name.
BASES: dict[str, type] = {
    "schedule": Schedule,
    "transform": Transform,
    "denoiser": BaseDenoiser,
    "decoder": Decoder,
    "reverse_variance": ReverseVariance,
    "net": Backbone,
    "data": Data,
}


#: How many names an answer to a wrong one may list.
LISTED = 24

_SECTIONS = ("seed", "model", "data", "training", "trainer", "extends", "tiny")

#: Options that the help does not show: `ndm train` has its own in their place.
_UNLISTED = ("config", "print_config", "print_shtab", "model", "training", "trainer", "model.standardize")


@dataclass(frozen=True)
class Built:
    """What a configuration stands for."""

    model: NDM
    data: Data
    training: TrainingOptions
    trainer: TrainerOptions
    seed: int


class Configuration:
    """A configuration with every default filled in.

    Args:
        parser: which it was read by.
        values: what was read.
    """

    def __init__(self, parser: ArgumentParser, values: Namespace) -> None:
        self.parser = parser
        self.values = values

    @classmethod
    def read(cls, name: str, overrides: Sequence[str] = (), tiny: bool = False) -> Configuration:
        """Read a configuration.

        Args:
            name: a file, or the bare name of a shipped configuration.
            overrides: ``--a.b value`` or ``--a.b=value``, as on the command line.
            tiny: take the configuration's section ``tiny`` over the rest of it.

        Raises:
            ValueError: the file cannot be read, or a name or a value in it or in the overrides is wrong.
        """
        tree = _load(name)
        small = tree.pop("tiny", None)
        if tiny:
            if small is None:
                raise ValueError(f"The configuration {name} has no section `tiny`; leave --tiny out.")
            tree = _merged(tree, small)
        _import_networks(f"{tree} {overrides}")
        for key, value in _pairs(overrides):
            _forget_other_class(tree, key.split("."), value)
        parser = _parser()
        try:
            # As text, since a file would be read again without what was forgotten.
            values = parser.parse_args(["--config", yaml.safe_dump(tree), *overrides])
        except Exception as error:  # jsonargparse lets errors of several kinds through
            _explain(str(error), parser)
        return cls(parser, values)

    @staticmethod
    def help(overrides: Sequence[str]) -> NoReturn:
        """Print the help that the options ask for, and exit."""
        parser = _parser()
        try:
            parser.parse_args(list(overrides))
        except Exception as error:
            _explain(str(error), parser)
        raise SystemExit(0)

    @property
    def text(self) -> str:
        """The whole configuration, in YAML; reading it gives the same again."""
        return self.parser.dump(self.values.clone(with_meta=False), skip_unset=False)

    def build(self) -> Built:
        """Make the objects. The seed is set first, so that the same configuration gives the same initial weights.

        Where a network's ``features`` or ``channels`` are null, the configuration gets those of the data.

        Raises:
            ValueError: a part refuses its arguments, or the parts do not fit each other.
        """
        seed = self.values.seed
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        data = _data(self.values.data)
        _fill(self.values.model, "features", lambda: math.prod(data.shape))
        _fill(self.values.model, "channels", lambda: data.shape[0])
        try:
            built = self.parser.instantiate(self.values)
        except (ValueError, TypeError) as error:
            _explain(str(error), self.parser)
        parts = dict(vars(built.model))
        continuous = data.levels is None and getattr(parts["decoder"], "levels", None) is None
        if parts["standardize"] is None and built.training.standardize and continuous:
            parts["standardize"] = _standardize(data)
        return Built(compose(**parts), data, built.training, built.trainer, seed)


def read_data(path: Path) -> Data:
    """The data set that a run's configuration names.

    Raises:
        ValueError: the configuration is missing or damaged, or does not name a data set.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}, which would say what data the run was trained on.")
    tree = _load(str(path))
    if "data" not in tree:
        raise ValueError(f"{path} does not say what data the run was trained on.")
    return _data(tree["data"])


def _data(description: Any) -> Data:
    """The data set of a configuration's section ``data``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Data, "data")
    try:
        return parser.instantiate(parser.parse_object({"data": description})).data
    except Exception as error:
        _explain(str(error), parser)


def _fill(part: Any, name: str, value: Callable[[], int]) -> None:
    """Give an argument that is null, of whatever part below ``part``, a value, which is asked for only then."""
    if not isinstance(part, Namespace):
        return
    for key, below in vars(part).items():
        if key == name and below is None:
            part[key] = value()
        else:
            _fill(below, name, value)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ndm train",
        usage=USAGE.format(
            names=textwrap.indent(textwrap.fill(", ".join(configs.names()), 98, break_on_hyphens=False), " " * 20)
        ),
        description="Train a model by a configuration, and write everything about it to a folder.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="read before the other options; the same as CONFIG")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order of the data, times and noise")
    parser.add_function_arguments(compose, "model")
    parser.add_subclass_arguments(Data, "data", required=True)
    parser.add_class_arguments(TrainingOptions, "training")
    parser.add_class_arguments(TrainerOptions, "trainer")
    for action in parser._actions:
        if action.dest.endswith(".help") or action.dest in _UNLISTED:
            action.help = argparse.SUPPRESS  # they work, but would make the help twice as long
    return parser


def _standardize(data: Data) -> Standardize:
    if not torch.isfinite(data.train).all():
        raise ValueError("In the train split: The data contain NaN or infinite values; remove or replace them.")
    return Standardize.fit(data.train)


# ---- reading


def _load(name: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration's sections, those of the one that it ``extends`` among them.

    Args:
        name: a file, or the bare name of a shipped configuration.
        seen: the files that led here.
    """
    path = configs.find(name)
    if path is None:
        raise ValueError(
            f"There is no configuration {name!r}: it is neither a file nor shipped with ndm"
            + _nearest(name, configs.names())
        )
    try:
        tree = get_loader("yaml")(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not YAML and cannot be read{where}.") from None
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} is not a configuration: it should have the sections model, data, training and trainer."
        )
    for section in tree:
        if section not in _SECTIONS:
            raise ValueError(f"{path} should not have a section {section!r}{_nearest(str(section), _SECTIONS)}")
    for section in ("model", "training", "trainer", "tiny"):
        if not isinstance(tree.get(section, {}), dict):
            raise ValueError(f"In {path}, {section} should be a section with fields of its own.")
    if (base := tree.pop("extends", None)) is None:
        return tree
    if path in seen:
        raise ValueError(f"{path} extends itself.")
    beside = [file for file in (path.parent / str(base), path.parent / f"{base}.yaml") if file.is_file()]
    return _merged(_load(str(beside[0] if beside else base), (*seen, path)), tree)


def _merged(base: Any, over: Any) -> Any:
    """A configuration with another one laid over it; a part of another class takes nothing over from the old one."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "class_path" in over and _bare(over["class_path"]) != _bare(base.get("class_path")):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _import_networks(text: str) -> None:
    """Import the networks that a text names: jsonargparse knows a class by its bare name only when it is imported."""
    for name in ndm.networks.__all__:
        if name in text:
            getattr(ndm.networks, name)


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names and values among ``--a.b value`` and ``--a.b=value``."""
    for option, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if option.startswith("--"):
            key, equals, value = option[2:].partition("=")
            yield key, value if equals else following


def _forget_other_class(tree: dict[str, Any], keys: list[str], value: str) -> None:
    """Take the part at ``keys`` out of a configuration if it is of another class than ``value``.

    jsonargparse would keep those of its arguments that the new class has too, such as a network that fits the old one.
    """
    *path, last = keys
    node: Any = tree
    for key in [*path, None]:
        if not isinstance(node, dict):
            return
        if "class_path" in node and key != "init_args":
            node = node.get("init_args") or {}
        node = node.get(key) if key else node
    part = node.get(last)
    if isinstance(part, dict) and "class_path" in part and _bare(part["class_path"]) != _bare(value):
        del node[last]


def _bare(class_path: Any) -> str:
    return str(class_path).rpartition(".")[2]


# ---- saying what is wrong


def _explain(message: str, parser: ArgumentParser) -> NoReturn:
    """Raise a ValueError with one sentence for what jsonargparse says in several lines.

    What it says is taken apart by its own words; if they should change, the fall-back is the whole of it in one line.
    """
    inner = re.findall(r'Parser key "([\w.]+)"', message)
    if class_name := _first(r"Expected a dot import path string: (\S+)", message) or _first(
        r"module '[\w.]+' has no attribute '(\w+)'", message
    ):
        known = _class_names(BASES.get(inner[-1].rpartition(".")[2], nn.Module) if inner else nn.Module)
        raise ValueError(f"There is no class {class_name!r} for {_path(inner)}{_nearest(class_name, known)}")
    if option := _first(r"Option '([\w.]+)' is not accepted", message):
        owner = re.findall(r"Problem with given class_path '([\w.]+)'", message)
        if owner:
            known = _arguments(owner[-1])
            raise ValueError(f"{_bare(owner[-1])} has no argument {option!r}{_nearest(option, known)}")
        raise ValueError(f"There is no option {option!r}{_nearest(option, _options(parser))}")
    if group := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        name = f"{group[1]}.{group[2]}"
        raise ValueError(f"There is no option {name!r}{_nearest(name, _options(parser))}")
    if option := _first(r"[Uu]nrecognized arguments: --([^\s=]+)", message):
        raise ValueError(f"There is no option {'--' + option!r}{_nearest(option, _options(parser), '--')}")
    if missing := _first(r"the following arguments are required: (.+)", message):
        where = f" in {_path(inner)}" if inner else ""
        name = f"{_path(inner)}.{missing}" if inner else missing
        hint = "" if "," in name else f": give it there, or as --{name} VALUE"
        raise ValueError(f"The configuration lacks {missing}{where}{hint}.")
    if wrong := re.search(r"Expected a (.+)\. Got value: (.*)", message):
        raise ValueError(f"{_path(inner)} should be {_type(wrong[1])}, not {wrong[2]!r}.")
    # A value that fits none of several types: jsonargparse lists why, and that it is not None either tells nothing.
    reasons = [r for r in re.findall(r"^ *- (.+)$", message, re.MULTILINE) if not r.startswith("Expected a")]
    raise ValueError(" ".join((reasons[0] if reasons else message).split()))


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _path(keys: Sequence[str]) -> str:
    return ".".join(keys) or "this"


def _type(description: str) -> str:
    if choices := re.match(r"typing\.Literal\[(.*)\]", description):
        return "one of " + choices[1].replace("'", "")
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    return names.get(_first(r"<class '(\w+)'>", description) or "", f"a {description}")


def _class_names(base: type) -> list[str]:
    """The public classes of ndm that derive from a base."""
    places = (ndm, ndm.networks, ndm.data)
    found = {name: getattr(place, name) for place in places for name in place.__all__}
    return sorted(
        name
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base and name != "NDM" and not _is_base(cls)
    )


def _is_base(cls: type) -> bool:
    """Whether a class is there to be derived from: it has abstract methods, or no constructor and classes of ours."""
    if any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls)):
        return True
    derived: list[type] = cls.__subclasses__()
    return "__init__" not in cls.__dict__ and any(c.__module__.startswith("ndm.") for c in derived)


def _arguments(class_path: str) -> list[str]:
    """The arguments of a class's constructor, and those it hands on to its bases."""
    module, _, name = class_path.rpartition(".")
    cls: type = getattr(importlib.import_module(module), name)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signatures = [inspect.signature(c) for c in cls.__mro__ if c.__module__.startswith("ndm.")]
    return list(dict.fromkeys(p.name for s in signatures for p in s.parameters.values() if p.kind not in kinds))


def _options(parser: ArgumentParser) -> list[str]:
    return [a.dest for a in parser._actions if a.dest not in ("help", *_UNLISTED) and not a.dest.endswith(".help")]


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a wrong name: what may have been meant, or what there is."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {prefix + close[0]!r}?"
    return f"; there are {', '.join(known)}." if len(known) <= LISTED else "; see `ndm train --help`."
