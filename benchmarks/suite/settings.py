"""The comparisons of suite.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

SUITE = Path(__file__).parents[1] / "suite.yaml"


@dataclass(frozen=True)
class Model:
    """One model of a comparison.

    Attributes:
        denoiser: width of a perceptron, or the channels of a U-Net at each resolution.
        embedding: width of a perceptron's embedding of the noise level.
        f_network: of a ``separable`` transformation: ``mlp``, ``table`` (a number for every level of a pixel) or
            ``table+mlp``.
        direct: the denoiser is a :class:`ndm.DirectDenoiser`; ``ode`` gives it the head for the ODE.
        schedule: ``learned``, with learned end points, or ``linear``.
        minimize_variance: of the learned schedule, as :class:`ndm.LearnedSchedule` takes it.
        gamma_min, gamma_max: the schedule's end points, or where they start.
        volatility: ``one`` or ``learned``.
        noise: the standard deviation of the forward process: ``none`` for sigma, ``mlp`` or ``conv`` for a network of x
            with ``noise_width`` hidden units or channels, ``dimension`` for a function of the noise level for each
            dimension, or for each channel of an image of more than one; ``frequency`` for each band of frequencies of
            an image; ``latent`` for a function of the latent for each pixel or column.
        latent: the size of the model's latent, whose encoder has ``latent_width`` hidden units; 0 for none.
        learning_rate: of AdamW.
        f_rate: the learning rate of the transformation in multiples of ``learning_rate``.
        size: the number of parameters in multiples of the first model's.
    """

    denoiser: tuple[int, ...]
    embedding: int = 64
    transform: str = "identity"
    f_network: str = "mlp"
    f_width: int = 0
    f_depth: int = 1
    terms: int = 2
    basis: str = "cosine"
    gate: str = "free"
    direct: bool | str = False
    schedule: str = "learned"
    minimize_variance: bool = True
    gamma_min: float = -8.0
    gamma_max: float = 5.0
    volatility: str = "one"
    noise: str = "none"
    noise_width: int = 16
    latent: int = 0
    latent_width: int = 16
    learning_rate: float = 2e-3
    f_rate: float = 1.0
    size: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "denoiser", tuple(self.denoiser))


@dataclass(frozen=True)
class Comparison:
    """Models that are trained on the same data for the same CPU seconds. The first one is the reference.

    Attributes:
        data: the name of the data set, see :mod:`suite.datasets`.
        depth: blocks of a perceptron, or per resolution of a U-Net.
        bounds: the numbers of steps T that are measured; None for continuous time.
        times: noise levels of an example, where T is larger or continuous.
        examples: the first so many test examples are measured; None for all.
        calibration: examples times steps that a calibration sees.
        tune: learning rates that ``--tune`` tries.
    """

    data: str
    models: Mapping[str, Model]
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 60.0
    network: str = "mlp"
    depth: int = 3
    batch_size: int = 256
    warmup: int = 100
    ema: float = 0.998
    clip: float = 20.0
    weight_decay: float = 0.0
    endpoint_rate: float = 1.0
    bounds: tuple[int | None, ...] = (10, None)
    times: int = 20
    examples: int | None = None
    calibration: int = 10_000
    tune: tuple[float, ...] = field(default=())

    def common(self) -> dict[str, Any]:
        """The settings without the models, the seeds and the grid."""
        return {k: v for k, v in asdict(self).items() if k not in ("models", "seeds", "tune")}


def read(path: Path = SUITE) -> dict[str, Comparison]:
    """The comparisons of a file by name; fields come from its section ``data`` for the data set, or the comparison."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    text = yaml.safe_load(path.read_text())
    found = {}
    for name, given in text["comparisons"].items():
        if given.get("data") not in text["data"]:
            raise ValueError(f"{name}: data must be one of {', '.join(text['data'])}, not {given.get('data')}.")
        merged = {**text["data"][given["data"]], **given}
        shared = merged.pop("model", {})
        models = {model: _made(Model, f"{name}, {model}", {**shared, **own}) for model, own in merged["models"].items()}
        lists = {k: tuple(v) for k, v in merged.items() if isinstance(v, list)}
        found[name] = _made(Comparison, name, {**merged, **lists, "models": models})
    return found


def _made(kind: type, where: str, given: Mapping[str, Any]) -> Any:
    if unknown := set(given) - {f.name for f in fields(kind)}:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}.")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{where}: {error}.") from None
