r"""The exact denoiser for a Gaussian mixture, as a starting point for a network.

For x ~ sum_k pi_k N(mu_k, S_k) and z = alpha x + sigma noise (method, section 2, F = x), with
S_k = U_k diag(lambda_k) U_k^T,

    p(k | z)  ~  pi_k N(z; alpha mu_k, alpha^2 S_k + sigma^2 I)
    E[noise | z] = sigma sum_k p(k | z) (alpha^2 S_k + sigma^2 I)^{-1} (z - alpha mu_k)
    E[x | z]     = sum_k p(k | z) [ mu_k + alpha S_k (alpha^2 S_k + sigma^2 I)^{-1} (z - alpha mu_k) ]

which is linear regression within each component (Bishop, Pattern Recognition and Machine Learning, equation 2.116). v
and the noise are computed without cancellation at every noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ndm.method.parts import Part
from ndm.method.schedules import NoiseLevel

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MixtureBase"]


class MixtureBase(Part):
    """The exact estimate for a Gaussian mixture, to which a denoiser's network is added.

    Use it as ``Denoiser(base=...)``. With a network whose initial output is zero, such as those of :mod:`ndm.networks`,
    the initial model is the mixture: its bound is the mixture's -log p, up to the schedule's end points. Training then
    corrects for what is not Gaussian. This helps for small data sets, such as tables of a few hundred rows.

    Args:
        features: d, the number of dimensions of an example.
        components: K, the number of Gaussians. All are N(0, I) until :meth:`set` is called or a state is loaded.

    Raises:
        ValueError: a number is not positive.
    """

    log_weights: Tensor
    rotated_means: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, features: int, components: int = 1) -> None:
        super().__init__()
        if features < 1 or components < 1:
            raise ValueError(f"features and components must be positive, got {features} and {components}.")
        self.features, self.components = features, components
        self.register_buffer("log_weights", torch.zeros(components) - torch.tensor(float(components)).log())
        self.register_buffer("rotated_means", torch.zeros(components, features))  # U_k^T mu_k
        self.register_buffer("variances", torch.ones(components, features))  # lambda_k
        self.register_buffer("axes", torch.eye(features).repeat(components, 1, 1))  # U_k, its columns

    @torch.no_grad()
    def set(
        self, weights: Tensor | np.ndarray, means: Tensor | np.ndarray, covariances: Tensor | np.ndarray
    ) -> MixtureBase:
        """Set the mixture, in the coordinates of the diffusion (standardised data).

        Args:
            weights: pi, (K,).
            means: (K, d).
            covariances: (K, d, d).
        """
        pi, mu, S = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, covariances))
        variances, axes = torch.linalg.eigh(S)
        self.log_weights.copy_(pi.log())
        self.rotated_means.copy_(torch.einsum("kd,kde->ke", mu, axes))
        self.variances.copy_(variances.clamp(min=0))
        self.axes.copy_(axes)
        return self

    def forward(self, z: Tensor, level: NoiseLevel, parameterization: str) -> Tensor:
        """The estimate in a denoiser's parameterisation, (B, \\*shape).

        Args:
            z: (B, \\*shape), the product of shape being d.
            level: the noise level of z, fields (B,).
            parameterization: ``v`` (alpha noise - sigma x), ``eps`` (the noise) or ``x``.
        """
        alpha, sigma = (value.to(z)[:, None, None] for value in (level.alpha, level.sigma))
        noise, x, log_density = self.of_components(z.flatten(1), level)
        shares = torch.softmax(self.log_weights.to(z) + log_density, dim=1)[:, :, None]
        estimate = {"eps": noise, "x": x, "v": alpha * noise - sigma * x}[parameterization]
        return (shares * estimate).sum(1).reshape(z.shape)

    def of_components(
        self, z: Tensor, level: NoiseLevel, partly: Sequence[int] = (), present: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""E[noise | z, k], E[x | z, k] and log N(z; alpha mu_k, C_k), up to a constant, of each component.

        Some coordinates may be noise only, with no value below. Of coordinate j, with the probability p_j that there is
        a value, the noise's variance is sigma^2 / p_j; then C_k = alpha^2 S_k + sigma^2 diag(1 / p). This is exact for
        p_j = 1 and, for the other coordinates, for p_j = 0. It is computed by Woodbury's identity.

        Args:
            z: (B, d).
            level: the noise level of z, fields (B,).
            partly: the coordinates, r of them, that may be without a value.
            present: p, (B, r).

        Returns:
            (B, K, d), (B, K, d) and (B, K).
        """
        alpha, sigma = (value.to(z)[:, None, None] for value in (level.alpha, level.sigma))
        axes, means, variances = (value.to(z) for value in (self.axes, self.rotated_means, self.variances))
        deviation = torch.einsum("bd,kde->bke", z, axes) - alpha * means
        total = alpha**2 * variances + sigma**2
        pull = deviation / total  # C_k^{-1} (z - alpha mu), in each component's axes
        log_det = total.log().sum(2)
        if partly:
            assert present is not None
            own = axes[:, partly]  # (K, r, d)
            spread = (sigma**2) * (1 - present)[:, None]
            matrix = torch.einsum("kre,bke,kse->bkrs", own, 1 / total, own) * spread[:, :, None]
            matrix = matrix + torch.diag_embed(present)[:, None]
            factors, pivots = torch.linalg.lu_factor(matrix)
            seen = torch.linalg.lu_solve(factors, pivots, torch.einsum("bke,kre->bkr", pull, own)[..., None])[..., 0]
            pull = pull - torch.einsum("bkr,kre->bke", spread * seen, own) / total
            log_det = log_det + factors.diagonal(dim1=2, dim2=3).abs().log().sum(2)
        noise = sigma * torch.einsum("bke,kde->bkd", pull, axes)
        if partly:
            noise = noise.index_copy(2, torch.tensor(partly, device=z.device), sigma * seen)
        x = torch.einsum("bke,kde->bkd", means + alpha * variances * pull, axes)
        return noise, x, -((deviation * pull).sum(2) + log_det) / 2
