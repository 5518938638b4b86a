r"""Functions of the noise level in which a separable transformation is expanded.

Each basis takes u (gamma mapped to [0, 1]) of any shape and returns the K functions' values and derivatives d/du, both
of shape (\*u.shape, K). Powers of u are ill-conditioned: their Gram matrix has condition number 1e10 at K = 8. The
cosine and Legendre bases are orthonormal on [0, 1]; the Gram matrix of bumps has condition number below 50 for every K
up to 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BASES", "Basis", "basis_named"]

Basis = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def _cosine(u: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    frequency = math.pi * torch.arange(terms, device=u.device, dtype=u.dtype)
    norm = torch.where(frequency > 0, frequency.new_tensor(math.sqrt(2)), torch.ones_like(frequency))
    angle = u[..., None] * frequency
    return norm * torch.cos(angle), -norm * frequency * torch.sin(angle)


def _legendre(u: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    # Bonnet's recurrence for the polynomials and P'_{n+1} = P'_{n-1} + (2n + 1) P_n for their derivatives.
    x = 2 * u - 1
    values, slopes = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for n in range(1, terms - 1):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
        slopes.append(slopes[n - 1] + (2 * n + 1) * values[n])
    norm = torch.sqrt(2 * torch.arange(terms, device=u.device, dtype=u.dtype) + 1)
    return norm * torch.stack(values[:terms], -1), 2 * norm * torch.stack(slopes[:terms], -1)


def _bumps(u: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    if terms == 1:
        return torch.ones_like(u)[..., None], torch.zeros_like(u)[..., None]
    spacing = 1 / (terms - 1)
    width = 0.6 * spacing  # wide enough to overlap, narrow enough to be distinct
    offset = (u[..., None] - spacing * torch.arange(terms, device=u.device, dtype=u.dtype)) / width
    values = torch.exp(-(offset**2) / 2)
    return values, -offset / width * values


#: The bases by name.
#: ``cosine``: sqrt(2) cos(pi k u), k = 0..K-1: even resolution over the range; zero slope at both ends.
#: ``legendre``: orthonormal polynomials of degree 0..K-1: finest resolution at both ends.
#: ``bumps``: Gaussians at evenly spaced centres: each term is local in the noise level.
BASES: dict[str, Basis] = {"cosine": _cosine, "legendre": _legendre, "bumps": _bumps}


def basis_named(name: str) -> Basis:
    """The basis of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in BASES:
        raise ValueError(f"There is no basis {name!r}; choose one of {', '.join(BASES)}.")
    return BASES[name]
