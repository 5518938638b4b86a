"""Trained models of diffusers as models of ndm, with their bound, likelihood and samplers."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.utils import logging
from safetensors import SafetensorError
from torch import Tensor

from ndm.method.decoders import Decoder, DiscretizedDecoder, GaussianDecoder
from ndm.method.denoised_decoder import DenoisedDecoder
from ndm.method.denoisers import Denoiser
from ndm.method.given_schedules import TableSchedule
from ndm.method.named_variances import variance_named
from ndm.method.parts import Part
from ndm.method.schedules import OTSchedule
from ndm.method.transforms.linear import Identity
from ndm.model import NDM
from ndm.storage.allowance import Allowance
from ndm.storage.texts import read_json, require_regular

__all__ = ["DiffusersUNet", "from_diffusers"]

_SCHEDULERS = {cls.__name__: cls for cls in (DDPMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler)}

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}

#: diffusers' variance types by their reverse variance here.
_VARIANCE_TYPES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "range",
}

#: Components of a pipeline whose diffusion is not of pixels.
_ENCODERS = ("vae", "vqvae", "movq")

_CONFIG, _SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")

#: The largest number of noise levels.
_MOST_LEVELS = 100_000

#: As in :mod:`ndm.storage.checkpoints`: a factor of the size of the weights, which may be in half precision.
_MANY, _SOME = 8, 1 << 28


class DiffusersUNet(Part):
    """diffusers' ``UNet2DModel``, as a network called as net(z, u).

    Args:
        config: the arguments of ``UNet2DModel``, such as its ``config``; names that begin with an underscore are
            ignored.
        time_factor: the factor of the second argument.

    Raises:
        ValueError: the configuration has other names or does not describe a network.

    Attributes:
        channels: the number of channels of its input.
        sample_size: the sides of the images that it was trained on; None if unknown.
        classes: the number of class labels, 0 without any.
        knows_no_class: whether there is a label that means no class: never, as diffusers does not define one.
    """

    knows_no_class = False

    def __init__(self, config: Mapping[str, Any], time_factor: float = 1.0) -> None:
        super().__init__()
        given = {k: v for k, v in config.items() if not k.startswith("_")}
        if unknown := set(given) - set(inspect.signature(UNet2DModel.__init__).parameters):
            raise ValueError(f"A UNet2DModel has no argument {sorted(unknown)[0]!r:.60}; remove it from the config.")
        if given.get("class_embed_type") is not None or given.get("time_embedding_type") == "fourier":
            raise ValueError(
                "Networks with a class_embed_type, or with Fourier features of the time, are not read; wrap the "
                "network by a function in ndm.Denoiser instead."
            )
        for name in ("freq_shift", "norm_eps", "mid_block_scale_factor"):  # they are used in the first pass only
            if name in given and not _is_number(given[name]):
                raise ValueError(f"The {name} of a UNet2DModel must be a number, got {given[name]!r:.60}.")
        try:
            self.unet = UNet2DModel(**given)
        except Exception as error:  # a constructor may raise anything for an invalid value
            reason = " ".join(str(error).split())
            raise ValueError(f"The configuration does not describe a UNet2DModel: {reason:.200}") from None
        self.time_factor = time_factor
        self.channels, self.sample_size = self.unet.config.in_channels, self.unet.config.sample_size
        self.classes = int(given.get("num_class_embeds") or 0)

    def forward(self, z: Tensor, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            z: (B, channels, H, W).
            u: (B,), the index of the noise level or flow matching's time.
            labels: (B,), integers.

        Raises:
            ValueError: labels are missing, or the network has none.
        """
        if (labels is None) != (not self.classes):
            raise ValueError(
                f"This network has {self.classes} classes: give it labels."
                if self.classes
                else "This network got labels but has no classes."
            )
        return self.unet(z, u * self.time_factor, class_labels=labels, return_dict=False)[0]


def from_diffusers(source: Any, *, decoder: Decoder | None = None, clip: bool | None = None) -> NDM:
    """A trained diffusers model as a model of ndm, in evaluation mode.

    The noise levels are the scheduler's ``alphas_cumprod`` (:class:`ndm.TableSchedule`); for flow matching the path
    alpha = 1 - t, sigma = t, whatever the scheduler's shift, which only moves the sampler's steps. Weights in half
    precision are converted to float32. The model has a copy of the weights.

    For N noise levels ``bound(x, N - 1)`` is the bound that DDPM and Improved DDPM report, with the scheduler's
    variance, on 8-bit pixels 0..255 given as integers or as pixels / 127.5 - 1. See docs/howto/any-model.md.

    Args:
        source: the folder of a pipeline (``unet/`` and ``scheduler/``, of which only JSON and safetensors are read), a
            pipeline object, or a pair (unet, scheduler). The network is a ``UNet2DModel``; the scheduler a DDPM, a DDIM
            or a FlowMatchEulerDiscreteScheduler.
        decoder: p(x | z_0). By default, for pixels, :class:`ndm.DenoisedDecoder`, DDPM's last step, or for flow
            matching ``DiscretizedDecoder(256, ends=True)``; for latents ``GaussianDecoder()``.
        clip: whether the estimate of x is clipped to the scheduler's ``clip_sample_range``; by default if the scheduler
            has ``clip_sample``.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: the files are damaged or pickled, a weight is NaN or infinite, or the network or the scheduler is of
            another kind.

    Warns:
        UserWarning: the data of the network are not pixels: the likelihood is that of its latents.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(
        ...     8, 3, 3, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
        ...     up_block_types=("UpBlock2D",), layers_per_block=1, add_attention=False,
        ... )
        >>> model = from_diffusers((unet, DDPMScheduler(1000)))
        >>> model.bound(torch.randint(256, (2, 3, 8, 8)), steps=999).bits_per_dim.shape
        torch.Size([2])
    """
    unet, scheduler, encoded = _opened(source)
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
    channels, out = config["in_channels"], config["out_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(f"The network must return 1 or 2 times its {channels} channels; it returns {out}.")
    latent = encoded or channels not in (1, 3)
    if latent:
        warnings.warn(
            "The network is of latents, not of pixels: its likelihood is the density of the latents, which cannot be "
            "compared with that of images.",
            UserWarning,
            stacklevel=2,
        )
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    net = DiffusersUNet(config, float(scheduler.config.num_train_timesteps) if flow else 1.0)
    for name, weight in unet.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"The weights {name} contain NaN or infinite values, so the model cannot be used.")
    net.unet.load_state_dict(unet.state_dict())
    net.to(unet.device, torch.float64 if unet.dtype == torch.float64 else torch.float32)
    if flow:
        model = _flow_model(net, scheduler, decoder or (None if latent else DiscretizedDecoder(256, ends=True)))
    else:
        model = _table_model(net, scheduler, decoder or (GaussianDecoder() if latent else None), clip, out > channels)
    return model.eval()


def _flow_model(net: DiffusersUNet, scheduler: Any, decoder: Decoder | None) -> NDM:
    if scheduler.config.get("invert_sigmas"):
        raise ValueError("A scheduler with invert_sigmas has its data at sigma = 1: this is not read.")
    # The network's output is noise - x, and its time sigma * num_train_timesteps.
    return NDM(OTSchedule(), Identity(), Denoiser(net, "velocity", time="sigma", path="ot"), decoder)


def _table_model(
    net: DiffusersUNet, scheduler: Any, decoder: Decoder | None, clip: bool | None, has_variance: bool
) -> NDM:
    config = scheduler.config
    if not isinstance(config.prediction_type, str) or config.prediction_type not in _PREDICTIONS:
        raise ValueError(f"There is no prediction_type {config.prediction_type!r:.60} of diffusers.")
    kind = config.get("variance_type", "fixed_small")  # DDIM's has none
    if not isinstance(kind, str) or kind not in _VARIANCE_TYPES:
        raise ValueError(
            f"The variance_type {kind!r:.60} is not read; it must be one of {', '.join(_VARIANCE_TYPES)}. (The output "
            "of a `learned` one is a variance in diffusers and a log-variance in Improved DDPM.)"
        )
    if kind == "learned_range" and not has_variance:
        raise ValueError("variance_type='learned_range' needs a network that returns twice its channels.")
    betas, zero = torch.as_tensor(scheduler.betas), config.get("rescale_betas_zero_snr", False)
    if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & ((betas <= 1) if zero else (betas < 1))).all():
        raise ValueError("The betas of the scheduler must be at least 2 numbers between 0 and 1.")
    if not scheduler.alphas_cumprod[-1] > 0:
        raise ValueError(
            "The scheduler has a zero terminal signal-to-noise ratio (rescale_betas_zero_snr), for which gamma is "
            "infinite: this is not read."
        )
    schedule = TableSchedule(scheduler.alphas_cumprod)
    if decoder is None:
        first, second = (1 - a for a in schedule.alphas_cumprod[:2])  # sigma^2
        # Improved DDPM's: of the posterior of the second step, since that of the first is zero.
        log_variance = math.log((1 - (1 - second) / (1 - first)) * first / second)
        decoder = DenoisedDecoder(256, log_variance, math.log(first) if kind == "learned_range" else None)
    clipped, largest = config.get("clip_sample", False) if clip is None else clip, config.get("clip_sample_range", 1.0)
    if clipped and not (_is_number(largest) and largest > 0):
        raise ValueError(f"The clip_sample_range of the scheduler must be a positive number, got {largest!r:.60}.")
    denoiser = Denoiser(
        net,
        _PREDICTIONS[config.prediction_type],
        time="index",
        clip=float(largest) if clipped else None,
    )
    return NDM(schedule, Identity(), denoiser, decoder, variance_named(_VARIANCE_TYPES[kind]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ---- the source


def _opened(source: Any) -> tuple[Any, Any, bool]:
    """The network, the scheduler, and whether the data are encoded."""
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source))
    unet, scheduler = source if isinstance(source, (tuple, list)) and len(source) == 2 else _parts_of(source)
    if not isinstance(unet, UNet2DModel):
        raise ValueError(f"The network must be a UNet2DModel of diffusers, got {type(unet).__name__}.")
    if not isinstance(scheduler, tuple(_SCHEDULERS.values())):
        raise ValueError(_unknown_scheduler(type(scheduler).__name__))
    return unet, scheduler, any(getattr(source, name, None) is not None for name in _ENCODERS)


def _parts_of(pipeline: Any) -> tuple[Any, Any]:
    unet, scheduler = getattr(pipeline, "unet", None), getattr(pipeline, "scheduler", None)
    if unet is None or scheduler is None:
        raise ValueError(
            "Give the folder of a diffusers pipeline, a pipeline with a unet and a scheduler, or a pair (unet, "
            f"scheduler); got {type(pipeline).__name__}."
        )
    return unet, scheduler


def _unknown_scheduler(name: str) -> str:
    return f"The scheduler must be one of {', '.join(_SCHEDULERS)}, got {name!r:.60}."


def _read(folder: Path) -> tuple[Any, Any, bool]:
    """Read a pipeline's folder. Some pipelines have the files of their network and scheduler in the folder itself."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}; a model of the hub is first downloaded, by `hf download NAME --local-dir "
            "FOLDER`."
        )
    of_unet, of_scheduler = (folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler"))
    scheduler = _read_scheduler(of_scheduler / _SCHEDULER_CONFIG)
    return _read_unet(of_unet), scheduler, any((folder / name).exists() for name in _ENCODERS)


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; it should be the folder of a diffusers pipeline.")
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} cannot be read: it is not a JSON object.")
    return found


def _read_scheduler(file: Path) -> Any:
    config = _read_object(file)
    name, levels = config.get("_class_name"), config.get("num_train_timesteps", 1000)
    if not isinstance(name, str) or name not in _SCHEDULERS:
        raise ValueError(f"{file}: {_unknown_scheduler(str(name))}")
    if not isinstance(levels, int) or not 2 <= levels <= _MOST_LEVELS:
        raise ValueError(f"{file}: num_train_timesteps must be 2 to {_MOST_LEVELS:,}, got {levels!r:.60}.")
    known = inspect.signature(_SCHEDULERS[name].__init__).parameters
    try:
        return _SCHEDULERS[name](**{k: v for k, v in config.items() if k in known})
    except Exception as error:  # a constructor may raise anything for an invalid value
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} does not describe a {name}: {reason:.200}") from None


def _read_unet(folder: Path) -> Any:
    config = _read_object(folder / _CONFIG)
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"{folder / _CONFIG}: the network must be a UNet2DModel, got {config.get('_class_name')!r:.60}."
        )
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl"))
        why = f" {pickles[0]} is pickled, which can run code when it is read." if pickles else ""
        raise FileNotFoundError(f"There is no {folder / _WEIGHTS[0]}, which holds the weights.{why}")
    require_regular(weights)
    advice = "its weights are of a smaller network, so that one of the two files is damaged or another model's"
    with Allowance(_MANY * weights.stat().st_size + _SOME, str(folder / _CONFIG), advice):
        DiffusersUNet(config)  # checks the configuration and its size before diffusers reads the weights
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # missing weights are an error below
        try:
            unet, told = UNet2DModel.from_pretrained(
                folder,
                use_safetensors=True,
                variant="fp16" if weights.name == _WEIGHTS[1] else None,
                low_cpu_mem_usage=False,
                local_files_only=True,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{weights} cannot be read as the network of {_CONFIG}: {reason:.300}") from None
        finally:
            logging.set_verbosity(said)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told.get(problem):
            what = f"{problem.replace('_', ' ')}, such as {next(iter(told[problem]))!s:.100}"
            raise ValueError(f"{weights} does not fit {_CONFIG}: {what}.")
    return unet
