"""The bound of Improved DDPM (arXiv 2102.09672) in bits per dimension, written from its paper and its published code.

Gaussian diffusion with 0-based steps t = 0..N-1, the last of which, t = 0, is the decoder.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor


class GaussianDiffusion:
    def __init__(self, alphas_cumprod: Tensor, predicts: str, variance: str, clip: bool, approximate: bool) -> None:
        self.predicts, self.variance, self.clip, self.approximate = predicts, variance, clip, approximate
        bar = alphas_cumprod.double().numpy()
        before = np.append(1.0, bar[:-1])
        self.bar, self.betas = bar, 1 - bar / before
        self.posterior_variance = self.betas * (1 - before) / (1 - bar)
        self.posterior_log_variance = np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))
        self.coefficient_x = self.betas * np.sqrt(before) / (1 - bar)
        self.coefficient_z = (1 - before) * np.sqrt(1 - self.betas) / (1 - bar)

    def q_sample(self, x: Tensor, t: int, noise: Tensor) -> Tensor:
        return math.sqrt(self.bar[t]) * x + math.sqrt(1 - self.bar[t]) * noise

    def model(self, net, z: Tensor, t: int, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, and the mean and the log-variance of the step from t."""
        output = net(z, torch.full((len(z),), t), class_labels=labels).sample
        if self.variance == "learned_range":
            output, head = output.chunk(2, dim=1)
            fraction = (head + 1) / 2
            log_variance = fraction * np.log(self.betas[t]) + (1 - fraction) * self.posterior_log_variance[t]
        elif self.variance == "fixed_large":
            log_variance = np.log(np.append(self.posterior_variance[1], self.betas[1:]))[t] * torch.ones_like(z)
        else:
            log_variance = self.posterior_log_variance[t] * torch.ones_like(z)
        alpha, sigma = math.sqrt(self.bar[t]), math.sqrt(1 - self.bar[t])
        x_hat = {
            "epsilon": (z - sigma * output) / alpha,
            "v_prediction": alpha * z - sigma * output,
            "sample": output,
        }[self.predicts]
        x_hat = x_hat.clamp(-1, 1) if self.clip else x_hat
        return x_hat, self.coefficient_x[t] * x_hat + self.coefficient_z[t] * z, log_variance

    def term(self, net, x: Tensor, t: int, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The term of step t, (B,), in bits per dimension."""
        z = self.q_sample(x, t, noise)
        _, mean, log_variance = self.model(net, z, t, labels)
        if t == 0:
            return self._decoder(x, mean, log_variance)
        true = self.coefficient_x[t] * x + self.coefficient_z[t] * z
        true_log_variance = torch.full_like(x, self.posterior_log_variance[t])
        return bits(normal_kl(true, true_log_variance, mean, log_variance))

    def prior(self, x: Tensor) -> Tensor:
        last = self.bar[-1]
        zero = torch.zeros_like(x)
        return bits(normal_kl(math.sqrt(last) * x, zero + math.log(1 - last), zero, zero))

    def _decoder(self, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        rate = torch.exp(-log_variance / 2)
        high, low = rate * (x - mean + 1 / 255), rate * (x - mean - 1 / 255)
        if self.approximate:
            phi_high, phi_low = tanh_phi(high), tanh_phi(low)
            middle = (phi_high - phi_low).clamp(min=1e-12).log()
            bottom, top = phi_high.clamp(min=1e-12).log(), (1 - phi_low).clamp(min=1e-12).log()
        else:
            h, lo = high.numpy(), low.numpy()
            a, b = np.where(lo + h > 0, -lo, h), np.where(lo + h > 0, -h, lo)  # b < a, in the lower tail
            middle = torch.from_numpy(norm.logcdf(a) + np.log1p(-np.exp(norm.logcdf(b) - norm.logcdf(a))))
            bottom, top = torch.from_numpy(norm.logcdf(h)), torch.from_numpy(norm.logsf(lo))
        return bits(-torch.where(x < -0.999, bottom, torch.where(x > 0.999, top, middle)))


def tanh_phi(a: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def normal_kl(mean: Tensor, log_variance: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    ratio = torch.exp(log_variance - log_variance_2)
    return 0.5 * (log_variance_2 - log_variance - 1 + ratio + (mean - mean_2) ** 2 * torch.exp(-log_variance_2))


def bits(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) / math.log(2)
