r"""The posterior of tables with columns of several kinds under a mixture, as a starting point for a network.

A component k has frequencies of the atoms of each column and a normal distribution of the values (the notation of
:mod:`ndm.method.columns`):

    p(row) = sum_k pi_k N(values that are there; mu_k, S_k) prod_j p_kj(atom or rest of column j)

Given k and z the columns' codes are independent, so with the evidence E_ja = log N(z_j; alpha e_ja, sigma^2), up to a
constant, and r_k = p(k | z),

    r_k        ~  pi_k N(z_values; alpha mu_k, C_k) prod_j sum_a p_kj(a) exp(E_ja)
    p_j(a | z) ~  exp(E_ja) sum_k p_kj(a) r_k / sum_b p_kj(b) exp(E_jb)
    v          =  sum_k r_k E[alpha noise - sigma x | z, k]

which is the posterior of a latent class model (McLachlan and Peel, Finite Mixture Models, 2000, section 5) for F = x.
A value that is there with the probability p_j has the precision p_j / sigma^2 in C_k: see
:meth:`ndm.MixtureBase.of_components`. The estimate is exact if p_j is 0 or 1, as it is near the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ndm.method.mixture import MixtureBase
from ndm.method.parts import Part
from ndm.method.schedules import NoiseLevel

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TableMixtureBase"]


class TableMixtureBase(Part):
    """The estimate for a mixture of columns of several kinds, to which a :class:`ndm.MixedDenoiser` adds its network.

    With a network whose initial output is zero the initial model is the mixture. Training then corrects for what the
    mixture does not describe. This helps for tables of a few hundred rows.

    Args:
        atoms: for each column the number of its atoms, the one that stands for the rest included; 1 is a column
            without a code.
        values: for each column whether it has values beside its atoms.
        shared: for each column whether the frequencies of its atoms are the same in all components, which saves memory
            for columns of many atoms; by default none.
        components: K, the number of components. All are equal until :meth:`set` is called or a state is loaded.

    Raises:
        ValueError: a number is not positive, or the lists differ in length.
    """

    log_weights: Tensor

    def __init__(self, atoms: list, values: list, shared: list | None = None, components: int = 1) -> None:
        super().__init__()
        shared = [False] * len(atoms) if shared is None else shared
        if components < 1 or min(atoms, default=0) < 1:
            raise ValueError(f"atoms and components must be positive, got {atoms} and {components}.")
        if not len(atoms) == len(values) == len(shared):
            raise ValueError(
                f"atoms, values and shared describe {len(atoms)}, {len(values)} and {len(shared)} columns."
            )
        self.components = components
        #: The number of atoms of each column, and whether it has values.
        self.columns = list(zip(atoms, map(bool, values), strict=True))
        self.register_buffer("log_weights", torch.zeros(components) - torch.tensor(float(components)).log())
        self._coded = [i for i, k in enumerate(atoms) if k > 1]
        for i in self._coded:
            start = torch.zeros(1 if shared[i] else components, atoms[i])
            self.register_buffer(f"log_atoms_{i}", start.log_softmax(1))
        at = [i for i, value in enumerate(values) if value]
        #: The column of each coordinate of a value that may be absent, with that coordinate.
        self._partly = {i: place for place, i in enumerate(at) if i in self._coded}
        self.normals = MixtureBase(len(at), components) if at else None

    @torch.no_grad()
    def set(
        self,
        weights: Tensor | np.ndarray,
        atoms: Sequence[Tensor | np.ndarray],
        means: Tensor | np.ndarray,
        covariances: Tensor | np.ndarray,
    ) -> TableMixtureBase:
        """Set the mixture.

        Args:
            weights: pi, (K,).
            atoms: of each column p_kj, (K, A), or (1, A) where they are shared; not used for a column without a code.
            means: of the values, (K, G).
            covariances: (K, G, G).
        """
        self.log_weights.copy_(torch.as_tensor(weights).log())
        for i in self._coded:
            self._atoms(i).copy_(torch.as_tensor(atoms[i]).log())
        if self.normals is not None:
            self.normals.set(weights, means, covariances)
        return self

    def _atoms(self, column: int) -> Tensor:
        return getattr(self, f"log_atoms_{column}")

    def forward(
        self, evidence: Sequence[Tensor | None], values: Tensor, level: NoiseLevel
    ) -> tuple[list[Tensor | None], Tensor]:
        """The mixture's part of the logits of the atoms, and v of the values.

        Args:
            evidence: of each column E, (B, A), or None without a code.
            values: z at the coordinates of the values, (B, G).
            level: the noise level of z, fields (B,).

        Returns:
            Of each column log sum_k p_kj(a) p(k | z without column j), (B, A) or (1, A), to add to E; and v, (B, G).
        """
        shares = self.log_weights.to(values).expand(len(values), -1)
        tables = {i: self._atoms(i).to(values) for i in self._coded}
        of_column: dict[int, Tensor] = {}
        for i, table in tables.items():
            own = evidence[i]
            assert own is not None
            of_column[i] = _log_product(own, table.T)
            shares = shares + of_column[i]
        v = values
        if self.normals is not None:
            present = self._present(evidence, tables, values)
            alpha, sigma = (value.to(values)[:, None, None] for value in (level.alpha, level.sigma))
            noise, x, log_density = self.normals.of_components(values, level, list(self._partly.values()), present)
            shares = shares + log_density
            v = (shares.softmax(1)[:, :, None] * (alpha * noise - sigma * x)).sum(1)
        logits: list[Tensor | None] = [None] * len(evidence)
        for i, table in tables.items():
            logits[i] = table if len(table) == 1 else _log_product(shares - of_column[i], table)
        return logits, v

    def _present(self, evidence: Sequence[Tensor | None], tables: dict[int, Tensor], values: Tensor) -> Tensor | None:
        """The probability that there is a value, (B, r), of the columns where there may be none."""
        found = []
        weights = self.log_weights.to(values)[:, None]
        for i in self._partly:
            table, own = tables[i], evidence[i]
            assert own is not None
            frequencies = table[0] if len(table) == 1 else (weights + table).logsumexp(0)
            found.append((own + frequencies).softmax(1)[:, -1])
        return torch.stack(found, 1) if found else None


def _log_product(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) @ exp(b)), (B, n), (n, m) -> (B, m), for b with finite entries of a moderate size."""
    top = a.amax(1, keepdim=True).detach()
    return torch.log((a - top).exp() @ b.exp()) + top
