r"""The model class NDM, which can be trained, evaluated, calibrated, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ndm._internal.inputs import Values, device_of, known_classes
from ndm._internal.random import Randomness
from ndm.inference.distribution import ModelDistribution
from ndm.inference.likelihood import log_likelihood
from ndm.inference.options import SamplerOptions
from ndm.inference.sampling import sample
from ndm.method.abbreviations import as_part
from ndm.method.bounds import BoundTerms, bound
from ndm.method.calibration import AUTO, calibrate
from ndm.method.compatibility import check_fit
from ndm.method.conditionals import conditional
from ndm.method.decoders import Decoder
from ndm.method.denoisers import Estimate
from ndm.method.encoding import TableEncoding
from ndm.method.latents import Latent
from ndm.method.noise import Noise
from ndm.method.process import Process
from ndm.method.schedules import Schedule
from ndm.method.standardization import Standardize
from ndm.method.transforms.curve import Transform
from ndm.method.variances import CalibratedVariance, Covariance, ReverseVariance, Step
from ndm.storage.checkpoints import load_part
from ndm.storage.hub import find, push, save_with_card

__all__ = ["NDM"]

#: The parts of a model.
_PARTS = (
    "schedule",
    "transform",
    "denoiser",
    "decoder",
    "reverse_variance",
    "volatility",
    "standardize",
    "noise",
    "latent",
)


class NDM(Process):
    r"""A Neural Diffusion Model (Bartosh, Vetrov and Naesseth, ICML 2024, arXiv 2310.08337).

    Args:
        schedule: t -> noise level: LinearSchedule, CosineSchedule, DDPMSchedule, OTSchedule, LearnedSchedule.
        transform: F(x, gamma): Identity (the conventional diffusion model), Scale, Blur, Neural, Separable.
        denoiser: Denoiser(net), DirectDenoiser(net), or any module called as denoiser(z, level) -> x_hat.
        decoder: GaussianDecoder() for continuous data (the default), DiscretizedDecoder(levels=K) for K-level data.
        reverse_variance: ``posterior``, ``large`` (DDPM's beta), ``learned`` (a function of the noise level),
            ``predicted`` or ``range`` (a head of the denoiser), or a custom
            :class:`~ndm.method.variances.ReverseVariance`.
        volatility: eta, a positive number, or a module gamma -> eta such as LearnedVolatility().
        standardize: for continuous data in original units, a Standardize, or for a table with columns of several kinds
            a TableEncoding; bound, sample and log_likelihood then use those units.
        calibrations: reverse variances for given numbers of steps, as created by :meth:`calibrate`.
        noise: the learned standard deviation of the forward process, LearnedNoise(net), DimensionNoise(shape),
            FrequencyNoise(shape) or LatentNoise(net, shape); None for that of the schedule.
        latent: a latent variable that the denoiser is given, and the noise, if it is a LatentNoise:
            GaussianLatent(net, size); None for none.

    Raises:
        ValueError: the parts are incompatible.

    Example:
        >>> import torch, ndm
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(
        ...     ndm.LinearSchedule(), ndm.Neural(ResidualMLP(2)), ndm.Denoiser(ResidualMLP(2)), ndm.GaussianDecoder()
        ... )
        >>> model.bound(torch.randn(16, 2)).total.shape
        torch.Size([16])
    """

    def __init__(
        self,
        schedule: Schedule,
        transform: Transform,
        denoiser: nn.Module,
        decoder: Decoder | None = None,
        reverse_variance: str | ReverseVariance = "posterior",
        volatility: float | nn.Module = 1.0,
        standardize: Standardize | TableEncoding | None = None,
        calibrations: Mapping[str, CalibratedVariance] | None = None,
        noise: Noise | None = None,
        latent: Latent | None = None,
    ) -> None:
        super().__init__(
            schedule, transform, denoiser, decoder, reverse_variance, volatility, standardize, noise, latent
        )
        self.calibrations = nn.ModuleDict(dict(calibrations or {}))

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a part by a compatible one, which receives the schedule's end points if it needs them.

        Raises:
            ValueError: the part is incompatible; the model is then unchanged.
        """
        if name not in _PARTS or "calibrations" not in self.__dict__.get("_modules", {}):  # called in the constructor
            super().__setattr__(name, value)
            return
        before = getattr(self, name)
        super().__setattr__(name, as_part(name, value))
        try:
            check_fit(self)
        except ValueError:
            super().__setattr__(name, before)
            raise
        self._tell_ranges()

    @property
    def device(self) -> torch.device | None:
        """The device of the model; None for a model without parameters and buffers."""
        return device_of(self)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one example according to the standardisation; None if unknown."""
        return None if self.standardize is None else (self.standardize.shape or None)

    @property
    def num_classes(self) -> int:
        """The number of classes that the denoiser is conditioned on; 0 for a model without classes."""
        return known_classes(self.denoiser)

    def forward(self, condition: Values | Mapping[str, Values] | None = None) -> ModelDistribution:
        """The distribution of the data, or of its conditionals, with ``log_prob`` and ``sample``.

        Args:
            condition: class labels, or given columns of a table: see
                :class:`~ndm.inference.distribution.ModelDistribution`.

        Raises:
            ValueError: the model does not know the condition.

        Example:
            >>> import torch, ndm
            >>> from ndm.networks import ResidualMLP
            >>> x = torch.randn(100, 2)
            >>> standardize = ndm.Standardize.fit(x)
            >>> model = ndm.NDM(
            ...     ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)), standardize=standardize
            ... )
            >>> model().sample((5,), steps=2).shape, model().log_prob(x).shape
            (torch.Size([5, 2]), torch.Size([100]))
        """
        return ModelDistribution(self, condition)

    def sample(
        self, n: int, shape: Sequence[int] | None = None, options: SamplerOptions | None = None, **changes: Any
    ) -> Tensor:
        r"""Draw n samples, (n, \*shape), in the data's original units; see :func:`ndm.sample`.

        Args:
            n: the number of samples.
            shape: the shape of one sample; by default :attr:`shape`.
            options: the sampler, as for :func:`ndm.sample`.
            changes: fields of ``options`` to replace, and further arguments of :func:`ndm.sample`.

        Raises:
            TypeError: as for :func:`ndm.sample`.
            ValueError: the shape is unknown, or as for :func:`ndm.sample`.
        """
        shape = self.shape if shape is None else shape
        if shape is None:
            raise ValueError("The shape of an example is unknown: pass it, as in sample(16, (1, 8, 8)).")
        return sample(self, n, shape, options, **changes)

    def log_prob(self, x: Values, **options: Any) -> Tensor:
        r"""log p(x) under the reverse ODE, (B,), in nats: :func:`ndm.log_likelihood` without error estimates.

        Args:
            x: data in original units, (B, \*shape).
            options: further arguments of :func:`ndm.log_likelihood`.

        Raises:
            ValueError: as for :func:`ndm.log_likelihood`.
        """
        return log_likelihood(self, x, **options).log_prob

    def bound(
        self,
        x: Tensor,
        steps: int | None = None,
        *,
        labels: Tensor | None = None,
        times: Tensor | None = None,
        generator: Randomness = None,
        check: bool = True,
        states: Tensor | None = None,
        by_column: bool = False,
    ) -> BoundTerms:
        """The terms of the bound on -log p(x), each (B,), in nats; see :func:`ndm.method.bounds.bound`."""
        return bound(
            self, x, steps, labels=labels, times=times, generator=generator, check=check, states=states,
            by_column=by_column,
        )  # fmt: skip

    def conditional(self, wanted: Sequence[str | int], given: Sequence[str | int] = ()) -> Process:
        """The model of some columns of a table given others; see :func:`ndm.method.conditionals.conditional`.

        Args:
            wanted: the wanted columns, by name or number.
            given: the given ones; all others are left out.

        Returns:
            A process whose data are rows of the wanted columns, (B, W), and whose labels are the codes and values of
            the given ones, (B, g).

        Raises:
            ValueError: the model has no such conditional, a column is unknown, or in both lists.
        """
        return conditional(self, wanted, given)

    def calibrate(
        self,
        batches: Iterable,
        steps: int = 10,
        covariance: str = AUTO,
        *,
        rank: int | None = None,
        spacing: str | Tensor = "time",
        generator: Randomness = None,
    ) -> NDM:
        """Set the best reverse variance for T = ``steps``, and the best steps, from data.

        The bound and ancestral sampling then use both for this number of steps. They replace earlier ones for the same
        T and are saved with the model; :meth:`uncalibrate` removes them. For the arguments see
        :func:`ndm.method.calibration.calibrate`.
        """
        self.calibrations[str(steps)] = calibrate(
            self, batches, steps, covariance, rank=rank, spacing=spacing, generator=generator
        )
        return self

    def uncalibrate(self, steps: int | None = None) -> NDM:
        """Remove the calibration for T = ``steps``, or all calibrations."""
        for key in [str(steps)] if steps is not None else list(self.calibrations):
            self.calibrations.pop(key)
        return self

    def calibrated(self, steps: int) -> bool:
        return str(steps) in self.calibrations

    def grid(self, steps: int) -> Tensor | None:
        if not self.calibrated(steps):
            return None
        calibration = self.calibrations[str(steps)]
        assert isinstance(calibration, CalibratedVariance)
        return calibration.grid

    def covariance(self, step: Step, estimate: Estimate) -> Covariance:
        key = str(step.steps)
        return (
            self.calibrations[key](step, estimate) if key in self.calibrations else super().covariance(step, estimate)
        )

    def config(self) -> dict[str, Any]:
        config = super().config()
        # Calibrations are added after construction, so they are not in the recorded argument.
        config["init_args"]["calibrations"] = {k: v.config() for k, v in self.calibrations.items()} or None  # type: ignore[operator]
        return config

    def save_pretrained(self, path: str | os.PathLike[str], *, card: Mapping[str, Any] | None = None) -> Path:
        """Write the model to a folder: config.json, model.safetensors and README.md, a model card.

        An earlier model in the folder is replaced, but a README.md that has been edited is kept.

        Args:
            path: the folder.
            card: information about the model that only the user has; see :func:`ndm.storage.hub.model_card`.

        Raises:
            TypeError: the model has an argument that a configuration cannot represent.
            FileExistsError: ``path`` exists and is not a saved model.
        """
        return save_with_card(self, path, card)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        allow: Iterable[type[nn.Module] | str] = (),
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> NDM:
        """Load a model from a folder or from the Hugging Face hub. No code in its files is executed.

        Args:
            path: a folder; or, if it does not exist, "user/model" on the hub (``pip install huggingface_hub``).
            allow: custom classes that the configuration may name, or the names of modules with such classes.
            revision: a branch, tag or commit on the hub.
            token: a token of the hub; for this and the following arguments see :func:`ndm.storage.hub.fetch`.
            cache_dir: the folder for the hub's files.
            force_download: download files again even if they are cached.
            local_files_only: use only cached files.

        Raises:
            FileNotFoundError: there is no saved model with that name.
            OSError: the hub cannot be reached or denies access.
            ValueError: the files are damaged, from another version, pickled, or name a class that is not allowed.
        """
        folder = find(
            path, revision=revision, token=token, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only,
        )  # fmt: skip
        return load_part(folder, cls, allow)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Mapping[str, Any] | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a model with ndm",
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model and its card to the Hugging Face hub; see :func:`ndm.storage.hub.push`.

        Returns:
            The URL of the commit.
        """
        return push(
            self, repo_id, card=card, private=private, token=token, commit_message=commit_message, branch=branch,
            create_pr=create_pr,
        )  # fmt: skip
