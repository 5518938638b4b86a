r"""The denoiser of tables with columns of several kinds.

Of a column's code the noisy value z says how likely each atom is, whatever the rest of the row. The denoiser adds that
evidence, which is known exactly for F = x, to what the network finds in the other columns:

    x_hat_code  = sum_a p_a e_a,   p = softmax_a( log pi_a + h phi_a - |z_code - alpha e_a|^2 / (2 sigma^2) + c_a )
    x_hat_value = p_rest (alpha z_value - sigma v_hat) / (alpha^2 + sigma^2)

with h and v_hat from the network and phi_a fixed features of the atom. c_a compares, for a column with atoms and
values, how well z_value fits a value (variance alpha^2 + sigma^2) and an atom (variance sigma^2). At output zero the
estimate is the posterior mean of independent columns with the frequencies pi and normal values, or with a base that of
its mixture. Near the data the evidence alone decides, so the network need not separate codes at a distance of many
standard deviations of the noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ndm._internal.precision import run_network
from ndm.method.columns import closeness, codes_of, log_frequencies
from ndm.method.denoisers import BaseDenoiser, Estimate
from ndm.method.readings import v_reading
from ndm.method.schedules import NoiseLevel, per_example
from ndm.method.table_mixture import TableMixtureBase
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.ranges import GammaRange

__all__ = ["GIVEN", "LEFT_OUT", "WANTED", "MixedDenoiser", "outputs_for"]

#: The states of a column: see :mod:`ndm.method.conditionals`.
LEFT_OUT, WANTED, GIVEN = 0, 1, 2

CONDITIONALS = ("none", "any")

#: Features of an atom on a line: cosines of its rank, up to this frequency.
COSINES = 8


class MixedDenoiser(GammaRange, BaseDenoiser):
    """x_hat of a table with columns of several kinds, from a network.

    Args:
        net: called as net(z, u), z (B, d), u (B,) in [0, 1]; it returns (B, R), with R the number of
            :func:`~ndm.method.mixed_denoiser.outputs_for` the columns.
        columns: the columns, as for :class:`ndm.MixedDecoder`.
        gamma_range: the noise levels mapped to u = 0 and u = 1; by default the end points of the schedule of the first
            model that uses the denoiser.
        conditionals: ``any`` for a network that is told which columns are wanted and which are given, as its
            ``context``, (B, 2 C); ``none`` for one conditional only, the joint density unless ``given`` is set.
        given: the numbers of the columns that are always given; the others are wanted.
        base: a mixture to which the network's output is added, for the joint density only; None for no base.

    Raises:
        ValueError: a description is invalid, a base is combined with ``conditionals`` or ``given``, or the network
            returns another shape.
    """

    def __init__(
        self,
        net: nn.Module,
        columns: list,
        gamma_range: tuple[float, float] | None = None,
        conditionals: str = "none",
        given: list | None = None,
        base: TableMixtureBase | None = None,
    ) -> None:
        super().__init__()
        if conditionals not in CONDITIONALS:
            raise ValueError(f"conditionals must be {' or '.join(CONDITIONALS)}, not {conditionals!r}.")
        if given and (conditionals == "any" or not set(given) < set(range(len(columns)))):
            raise ValueError("The given columns must be some of the columns, not all, and conditionals must be none.")
        self.net = net
        self.conditionals = conditionals
        self.given = given
        self._take_range(gamma_range)
        self.parts = _parts(columns)
        self.outputs = sum(part.outputs for part in self.parts)
        self.log_weights = nn.ParameterList(part.log_frequencies() for part in self.parts if part.m)
        self.base: TableMixtureBase | None = None
        if base is not None:
            self.start_from(base)

    @property
    def conditional(self) -> bool:
        return self.conditionals == "any" or bool(self.given)

    def start_from(self, base: TableMixtureBase) -> None:
        """Set the base. The weights of the atoms become factors of the base's frequencies, 1 at first.

        Raises:
            ValueError: the denoiser is not of the joint density, or the base has other columns.
        """
        if self.conditional:
            raise ValueError("A mixture is a base of the joint density only: conditionals must be none, without given.")
        if base.columns != [(len(part.counts), part.rest) for part in self.parts]:
            raise ValueError("The base has other columns than the denoiser.")
        self.base = base
        for weights in self.log_weights:
            nn.init.zeros_(weights)

    @property
    def dimensions(self) -> int:
        """d, the number of coordinates."""
        return sum(part.m + part.rest for part in self.parts)

    def knows(self, wanted: Sequence[int], given: Sequence[int]) -> bool:
        """Whether the network was built for p(wanted | given), which are column numbers."""
        if self.conditionals == "any":
            return True
        own = sorted(self.given or [])
        return sorted(given) == own and len(wanted) + len(own) == len(self.parts)

    def default_states(self, n: int) -> Tensor | None:
        """The states, (n, C), for which a network of one conditional was built; None for the joint density."""
        if not self.given:
            return None
        states = torch.full((n, len(self.parts)), WANTED)
        states[:, self.given] = GIVEN
        return states

    def without(self, atoms: Mapping[int, int]) -> MixedDenoiser:
        """A copy with the same network that gives some atoms, one per column number, probability zero."""
        own = copy.copy(self)
        own._modules = dict(self._modules)
        places = [i for i, part in enumerate(self.parts) if part.m]
        weights = [w.detach().clone() for w in self.log_weights]
        for column, atom in atoms.items():
            weights[places.index(column)][atom] = -math.inf
        own.log_weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)
        return own

    def coordinates_in(self, states: Tensor, state: int) -> Tensor:
        """Whether each coordinate belongs to a column in a state, bool (B, C) -> (B, d)."""
        widths = torch.tensor([part.m + part.rest for part in self.parts], device=states.device)
        return (states == state).repeat_interleave(widths, 1)

    def estimate(
        self,
        z: Tensor,
        level: NoiseLevel,
        labels: Tensor | None = None,
        states: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Estimate:
        """Run the network once.

        Args:
            z: (B, d).
            level: the noise level of z, fields (B,).
            labels: class labels, (B,), passed to the network.
            states: the states of the columns, (B, C); None for the density of all columns.
            seen: x, (B, d), of which the given coordinates are used.
        """
        output, z, wanted = self._run(z, level, labels, states, seen)
        found = self._found(output, z, level)
        mean = found.mean if wanted is None else found.mean * wanted

        def residual(target: Tensor, displacement: Tensor, noise: Tensor) -> Tensor:
            gap = target - mean
            for part in self.parts:
                if part.rest:
                    at = part.value
                    own = v_reading(found.v[at.start], z[:, at], level)
                    fine = own.residual(target[:, at], displacement[:, at], noise[:, at])
                    p = found.certain.get(at.start)
                    gap[:, at] = fine if p is None else p * fine + (1 - p) * target[:, at]
            return gap if wanted is None else gap * wanted

        return Estimate(mean=mean, residual=residual)

    def probabilities(
        self, z: Tensor, level: NoiseLevel, states: Tensor | None = None, seen: Tensor | None = None
    ) -> dict[int, Tensor]:
        """The posterior of the atoms of each column with a code, (B, K) by the column's number."""
        output, z, _ = self._run(z, level, None, states, seen)
        return self._found(output, z, level).atoms

    def _run(
        self, z: Tensor, level: NoiseLevel, labels: Tensor | None, states: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The network's output, (B, R), the z that it was given, and the wanted coordinates."""
        conditions: dict[str, Tensor] = {} if labels is None else {"labels": labels}
        wanted = None
        if states is not None:
            assert seen is not None
            wanted = self.coordinates_in(states, WANTED)
            z = torch.where(wanted, z, torch.where(self.coordinates_in(states, GIVEN), seen, torch.zeros_like(z)))
        if self.conditionals == "any":
            if states is None:
                states = torch.full((len(z), len(self.parts)), WANTED, device=z.device)
            conditions["context"] = torch.cat([states == WANTED, states == GIVEN], 1).to(z)
        u = unit_interval(level.gamma, self.gamma_range)
        if level.shared:
            u = u[:1].expand(len(z))
        output = run_network(self.net, z, u, **conditions)
        if output.shape != (len(z), self.outputs):
            raise ValueError(
                f"The network of a MixedDenoiser for these columns must return {self.outputs} numbers a row; it "
                f"returned shape {tuple(output.shape)}."
            )
        return output, z, wanted

    def _found(self, output: Tensor, z: Tensor, level: NoiseLevel) -> _Found:
        """The posterior by the network's output, and the base's if there is one."""
        evidence = self._evidence(z, level)
        logits: Sequence[Tensor | None] = [None] * len(self.parts)
        v = [output[:, part.output_value] for part in self.parts if part.rest]
        if self.base is not None:
            values = [z[:, part.value] for part in self.parts if part.rest]
            logits, more = self.base(evidence, torch.cat(values, 1) if values else z[:, :0], level)
            v = [own + more[:, i : i + 1] for i, own in enumerate(v)]
        found, of_values, pieces = _Found(), iter(v), []
        for number, (part, own) in enumerate(zip(self.parts, evidence, strict=True)):
            p_rest = None
            if own is not None:
                own = own + output[:, part.output_code] @ part.features.to(z).T
                of_base = logits[number]
                p = found.atoms[number] = (own if of_base is None else own + of_base).softmax(1)
                pieces.append(p @ part.codes.to(z))
                p_rest = p[:, -1:]
            if part.rest:
                at = part.value.start
                found.v[at] = next(of_values)
                mean = v_reading(found.v[at], z[:, part.value], level).mean()
                if p_rest is not None:
                    found.certain[at] = p_rest
                pieces.append(mean if p_rest is None else p_rest * mean)
        found.mean = torch.cat(pieces, 1)
        return found

    def _evidence(self, z: Tensor, level: NoiseLevel) -> list[Tensor | None]:
        """For each column with a code what z says of its atoms, with their weights, (B, K), up to a constant."""
        alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
        weights = iter(self.log_weights)
        found: list[Tensor | None] = []
        for part in self.parts:
            if not part.m:
                found.append(None)
                continue
            near = closeness(z[:, part.code] / alpha, part.codes.to(z)) * (alpha / sigma) ** 2
            own = next(weights).to(z.dtype) + near
            if part.rest:
                more = _value_evidence(z[:, part.value], alpha, sigma)
                own = torch.cat([own[:, :-1], own[:, -1:] + more], 1)
            found.append(own)
        return found


@dataclass
class _Found:
    """The posterior of one batch.

    Attributes:
        mean: x_hat, (B, d).
        v: v_hat of the values, (B, 1) by coordinate.
        certain: the probability of a value, (B, 1) by coordinate, for columns with atoms and values.
        atoms: the probabilities of atoms, (B, K) by column number.
    """

    mean: Tensor = field(init=False)
    v: dict[int, Tensor] = field(default_factory=dict)
    certain: dict[int, Tensor] = field(default_factory=dict)
    atoms: dict[int, Tensor] = field(default_factory=dict)


def _value_evidence(z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """log N(z; 0, alpha^2 + sigma^2) - log N(z; 0, sigma^2)."""
    total = alpha**2 + sigma**2
    return z**2 / 2 * (1 / sigma**2 - 1 / total) + torch.log(sigma**2 / total) / 2


def outputs_for(columns: Sequence[Mapping[str, Any]]) -> int:
    """R, the number of outputs of the network of a :class:`MixedDenoiser`."""
    return sum(part.outputs for part in _parts(columns))


def _parts(columns: Sequence[Mapping[str, Any]]) -> list[_Part]:
    parts, coordinate, output = [], 0, 0
    for column in columns:
        part = _Part(column, coordinate, output)
        coordinate, output = coordinate + part.m + part.rest, output + part.outputs
        parts.append(part)
    return parts


class _Part:
    """The layout of one column: its coordinates in z, and its outputs of the network."""

    def __init__(self, column: Mapping[str, Any], coordinate: int, output: int) -> None:
        try:
            self.codes = codes_of(column["codes"])
            self.counts = torch.tensor(column["counts"], dtype=torch.float64)
            self.rest = column["rest"] is not None
        except (KeyError, TypeError) as error:
            raise ValueError(f"The description of a column is damaged: {column!r:.100} ({error}).") from None
        self.m = self.codes.shape[1]
        self.features = _line_features(column["codes"], self.counts) if _is_line(column["codes"]) else self.codes
        self.outputs = (self.features.shape[1] if self.m else 0) + self.rest
        self.code = slice(coordinate, coordinate + self.m)
        self.value = slice(coordinate + self.m, coordinate + self.m + 1)
        self.output_code = slice(output, output + self.outputs - self.rest)
        self.output_value = slice(output + self.outputs - 1, output + self.outputs)

    def log_frequencies(self) -> nn.Parameter:
        return nn.Parameter(log_frequencies(self.counts).float())


def _is_line(spec: Any) -> bool:
    return isinstance(spec, Mapping) and "line" in spec


def _line_features(spec: Mapping[str, Any], counts: Tensor) -> Tensor:
    """Features of atoms on a line and beside it, (K, r): cosines of the middle rank, and one per atom beside."""
    n, beside = len(spec["line"]), int(spec.get("beside", 0))
    share = log_frequencies(counts[:n]).exp()
    rank = share.cumsum(0) - share / 2
    r = min(COSINES, n - 1)
    features = torch.zeros(n + beside, r + beside, dtype=torch.float64)
    features[:n, :r] = math.sqrt(2) * torch.cos(math.pi * rank[:, None] * torch.arange(1, r + 1))
    features[n:, r:] = torch.eye(beside, dtype=torch.float64)
    return features
