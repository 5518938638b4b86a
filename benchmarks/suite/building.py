"""The models of a row, and the widths that give them equal numbers of parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from bench import parameters
from torch import nn

import ndm
from ndm.data import Data
from ndm.method.denoisers import BaseDenoiser
from ndm.networks import Backbone, ConvNet, LevelTable, ResidualMLP, UNet
from suite.settings import Entry, Row

#: How far a model's parameters may be from the reference's, as a part of them.
TOLERANCE = 0.005

#: Channels of a U-Net are multiples of this, the number of its groups.
UNIT = 2

#: Width of a perceptron's embedding of the noise level. Others near it are tried to meet the number of parameters.
EMBEDDING = 64


@dataclass(frozen=True)
class Widths:
    """What is searched for.

    Attributes:
        denoiser: width of a perceptron, or channels of a U-Net at each resolution.
        embedding: of a perceptron's noise level.
        transform: width of F's network; None if it has none.
    """

    denoiser: tuple[int, ...]
    embedding: int = EMBEDDING
    transform: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(entry: Entry, row: Row, data: Data, widths: Widths) -> ndm.NDM:
    """The model of an entry, drawn from torch's generator."""
    if data.levels is None:
        rest: dict[str, Any] = {"decoder": ndm.GaussianDecoder(), "standardize": ndm.Standardize.fit(data.train)}
    else:
        decoder = ndm.WeightedDecoder if entry.decoder == "weighted" else ndm.DiscretizedDecoder
        rest = {"decoder": decoder(data.levels)}
    return ndm.NDM(
        _schedule(entry),
        _transform(entry, data, widths.transform),
        _denoiser(entry, _denoiser_net(entry, row, data.shape, widths.denoiser, widths.embedding)),
        reverse_variance=entry.variance,
        volatility=ndm.LearnedVolatility() if entry.volatility == "learned" else entry.volatility,
        **rest,
    )


def _schedule(entry: Entry) -> ndm.Schedule:
    low, high = entry.gamma_min, entry.gamma_max
    return {
        "learned": lambda: ndm.LearnedSchedule(
            low, high, learn_endpoints=entry.endpoints == "learned", minimize_variance=entry.m == "variance"
        ),
        "linear": lambda: ndm.LinearSchedule(low, high),
        "cosine": lambda: ndm.CosineSchedule(gamma_min=low, gamma_max=high),
        "ddpm": lambda: ndm.DDPMSchedule(gamma_min=low),
        "ot": lambda: ndm.OTSchedule(low, high),
    }[entry.schedule]()


def _denoiser(entry: Entry, net: nn.Module) -> BaseDenoiser:
    return ndm.DirectDenoiser(net, ode=entry.direct == "ode") if entry.direct else ndm.Denoiser(net)


def _transform(entry: Entry, data: Data, width: int | None) -> ndm.Transform:
    if entry.transform == "identity":
        return ndm.Identity()
    if entry.transform == "blur":
        return ndm.Blur(entry.blur)
    assert width is not None
    net = _transform_net(entry, data.shape, data.levels, width)
    if entry.transform == "neural":
        return ndm.Neural(net, gate=entry.gate)
    return ndm.Separable(net, terms=entry.terms, basis=entry.basis, gate=entry.gate)


def _denoiser_net(
    entry: Entry, row: Row, shape: tuple[int, ...], width: tuple[int, ...], embedding: int
) -> ResidualMLP | UNet:
    heads = 1 + (entry.variance == "predicted") + (entry.direct == "ode")
    if row.network == "mlp":
        return ResidualMLP(math.prod(shape), width[0], row.depth, heads=heads, embedding=embedding)
    return UNet(shape[0], width=1, multipliers=width, blocks=row.depth, heads=heads, groups=UNIT)


def _transform_net(entry: Entry, shape: tuple[int, ...], levels: int | None, width: int) -> Backbone:
    heads = entry.terms if entry.transform == "separable" else 1
    if entry.f_network.startswith("table"):
        if levels is None:
            raise ValueError(
                f"Model {entry.name}: a table needs data with levels, these are continuous: choose another f_network."
            )
        other = entry.f_network.removeprefix("table").removeprefix("+")
        return LevelTable(levels, heads=heads, beside=_network(other, entry, shape, width) if other else None)
    return _network(entry.f_network, entry, shape, width)


def _network(kind: str, entry: Entry, shape: tuple[int, ...], width: int) -> Backbone:
    heads, level = (entry.terms, False) if entry.transform == "separable" else (1, True)
    options: dict[str, Any] = {"heads": heads, "level": level, "embedding": entry.f_embedding, "depth": entry.f_depth}
    if kind == "mlp":
        return ResidualMLP(math.prod(shape), width, **options)
    return ConvNet(shape[0], width, kernel=1 if kind == "pointwise" else 3, patch=entry.f_patch, **options)


# ---- equal parameters


def matched(row: Row, data: Data) -> dict[str, Widths]:
    """The widths of every model of the row, by name.

    Raises:
        ValueError: there are none with which a model is as large as it has to be.
    """
    base = Widths(row.width)
    total = parameters(build(row.reference, row, data, base))
    return {
        entry.name: base if entry is row.reference else match(entry, row, data, round(entry.size * total))
        for entry in row.models
    }


def match(entry: Entry, row: Row, data: Data, total: int) -> Widths:
    """The widths with which a model has ``total`` parameters, to within :data:`TOLERANCE`, and F its share of them.

    Among those the one is taken that comes nearest to the share, and to the reference in its denoiser's shape: one with
    more channels at full resolution and fewer below would have as many parameters, but not cost the same.

    Raises:
        ValueError: there are none.
    """
    shape = data.shape
    # Outside of the networks: the schedule, the volatility, the variance.
    some = Widths(row.width, transform=8 if entry.learned else None)
    probe = build(entry, row, data, some)
    rest = parameters(probe) - _size(_denoiser_net, (entry, row), shape, some.denoiser, some.embedding)
    if entry.learned:
        rest -= _size(_transform_net, (entry,), shape, data.levels, some.transform)
    wanted = entry.share if entry.learned else 0.0
    found = []
    scale = math.sqrt(entry.size * (1 - wanted))
    for widths in _denoisers(row, scale):
        denoiser = rest + _size(_denoiser_net, (entry, row), shape, widths.denoiser, widths.embedding)
        f_width = _nearest(entry, data, total - denoiser) if entry.learned else None
        in_f = _size(_transform_net, (entry,), shape, data.levels, f_width) if f_width else 0
        here = Widths(widths.denoiser, widths.embedding, f_width)
        found.append((abs(denoiser + in_f - total) / total, abs(in_f / total - wanted), here, denoiser + in_f))
    within = [f for f in found if f[0] <= TOLERANCE]
    where = f"Row {row.name}, model {entry.name}"
    if not within:
        nearest = min(found, key=lambda f: f[0])
        raise ValueError(
            f"{where}: no widths give {total:,} parameters to within {TOLERANCE:.1%}; the nearest are {nearest[3]:,}. "
            "Change the row's width or the share of F."
        )
    slack = min(0.01 + wanted / 4, 0.002 + wanted / 2)  # a share of 1% may not become one of nothing
    alike = [f for f in within if f[1] <= slack]
    if not alike:
        raise ValueError(
            f"{where}: at equal parameters the nearest that F's share comes to {wanted:.1%} is off by "
            f"{min(f[1] for f in within):.1%}. Change the row's width or the share of F."
        )
    return min(alike, key=lambda f: (round(f[1] / slack + _unlike(f[2], row, scale), 6), f[0]))[2]


def _denoisers(row: Row, scale: float) -> Iterator[Widths]:
    """Widths to try: around the reference's times ``scale``."""
    if row.network == "mlp":
        middle = row.width[0] * scale
        for width in range(max(2, int(0.7 * middle)), math.ceil(1.3 * middle) + 1):
            for embedding in range(EMBEDDING - 16, EMBEDDING + 17, 2):
                yield Widths((width,), embedding)
        return
    each = []
    for channels in row.width:
        low, high = int(0.85 * channels * scale / UNIT), math.ceil(1.15 * channels * scale / UNIT)
        each.append([UNIT * k for k in range(max(1, low), high + 1)])
    for widths in itertools.product(*each):
        yield Widths(widths)


def _unlike(widths: Widths, row: Row, scale: float) -> float:
    """How far the denoiser's shape is from the reference's with its widths times ``scale``: 1 for a fifth."""
    ratios = [math.log(w / base) for w, base in zip(widths.denoiser, row.width, strict=True)]
    unlike = 5 * (max(ratios) - min(ratios)) + abs(math.log(widths.embedding / EMBEDDING))
    # Of a perceptron a wide embedding must not make up for narrow blocks.
    return unlike + (5 * abs(ratios[0] - math.log(scale)) if row.network == "mlp" else 0.0)


def _nearest(entry: Entry, data: Data, wanted: int) -> int:
    """The width whose network in F has a number of parameters nearest to the one wanted."""

    def size(width: int) -> int:
        return _size(_transform_net, (entry,), data.shape, data.levels, width)

    if wanted < size(1) or size(1) == size(2):  # a table is as large as the data's levels ask for
        return 1
    low, high = 1, 2
    while size(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    return min((low, high), key=lambda width: abs(size(width) - wanted))


def _size(net: Callable[..., nn.Module], of: Sequence[Entry | Row], shape: tuple[int, ...], *width: Any) -> int:
    return _counted(net, tuple(_Hashed(one) for one in of), shape, *width)


class _Hashed:
    """An entry or a row as a key, by what its networks depend on."""

    def __init__(self, of: Entry | Row) -> None:
        self.of = of
        names: Sequence[str] = (
            "variance",
            "direct",
            "terms",
            "transform",
            "f_network",
            "f_depth",
            "f_patch",
            "f_embedding",
        )
        if isinstance(of, Row):
            names = ("network", "depth")
        self.key = tuple(getattr(of, name) for name in names)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.key == other.key


@cache
def _counted(net: Callable[..., nn.Module], of: tuple[_Hashed, ...], shape: tuple[int, ...], *width: Any) -> int:
    with torch.device("meta"):  # no numbers, only their number
        return parameters(net(*(one.of for one in of), shape, *width))
