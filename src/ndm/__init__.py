r"""Neural Diffusion Models for PyTorch: diffusion models whose forward process is learned.

A model is four parts put together, a noise schedule, a data transformation, a denoiser and a decoder; the bound, the
samplers and the likelihood are written once against those four.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any


def _leave_the_current_folder() -> None:
    """Take the current folder, which `python -m ndm` puts there first, out of the places that modules are looked for.

    Else a file torch.py or yaml.py in it would be run in the place of the package. `python -m` imports this module
    while the name of the program is still "-m"; nobody else's import of ndm is touched.
    """
    if sys.argv[:1] != ["-m"] or getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    for word, following in zip(sys.orig_argv[1:], [*sys.orig_argv[2:], ""], strict=True):
        flags, option, module = word[1:].partition("m")
        if word.startswith("-") and option and set(flags) <= set("bBdEiIOPqsSuvx"):  # as in -um
            if (module or following).partition(".")[0] == "ndm":
                sys.path.pop(0)
            return


_leave_the_current_folder()

if TYPE_CHECKING:
    from ndm.bounds import BoundTerms
    from ndm.decoders import Decoder, DiscretizedDecoder, GaussianDecoder, WeightedDecoder
    from ndm.denoisers import Denoiser, DirectDenoiser, Estimate, GuidedDenoiser
    from ndm.distances import SampleDistance, mmd, sliced_wasserstein
    from ndm.dynamics import PathCost, acceleration, curvature, ode_paths, path_cost
    from ndm.grids import optimal_grid
    from ndm.likelihood import LogLikelihood, log_likelihood
    from ndm.mixture import MixtureBase
    from ndm.model import NDM
    from ndm.parts import Part
    from ndm.process import ConstantVolatility, LearnedVolatility, Standardize
    from ndm.sampling import sample, sample_batches
    from ndm.schedules import (
        CosineSchedule,
        DDPMSchedule,
        LearnedSchedule,
        LinearSchedule,
        NoiseLevel,
        OTSchedule,
        Schedule,
    )
    from ndm.transforms import Blur, Curve, Identity, Neural, Scale, Separable, Transform
    from ndm.variances import CalibratedVariance, LearnedVariance, PosteriorVariance, PredictedVariance, ReverseVariance

__version__ = "0.1.0"

#: The module of each public name. It is imported when the name is first used, so that `ndm --help` needs no PyTorch.
_HOMES = {
    "Blur": "transforms",
    "BoundTerms": "bounds",
    "CalibratedVariance": "variances",
    "ConstantVolatility": "process",
    "CosineSchedule": "schedules",
    "Curve": "transforms",
    "DDPMSchedule": "schedules",
    "Decoder": "decoders",
    "Denoiser": "denoisers",
    "DirectDenoiser": "denoisers",
    "DiscretizedDecoder": "decoders",
    "Estimate": "denoisers",
    "GaussianDecoder": "decoders",
    "GuidedDenoiser": "denoisers",
    "Identity": "transforms",
    "LearnedSchedule": "schedules",
    "LearnedVariance": "variances",
    "LearnedVolatility": "process",
    "LinearSchedule": "schedules",
    "LogLikelihood": "likelihood",
    "MixtureBase": "mixture",
    "NDM": "model",
    "Neural": "transforms",
    "NoiseLevel": "schedules",
    "OTSchedule": "schedules",
    "Part": "parts",
    "PathCost": "dynamics",
    "PosteriorVariance": "variances",
    "PredictedVariance": "variances",
    "ReverseVariance": "variances",
    "SampleDistance": "distances",
    "Scale": "transforms",
    "Schedule": "schedules",
    "Separable": "transforms",
    "Standardize": "process",
    "Transform": "transforms",
    "WeightedDecoder": "decoders",
    "acceleration": "dynamics",
    "curvature": "dynamics",
    "log_likelihood": "likelihood",
    "mmd": "distances",
    "ode_paths": "dynamics",
    "optimal_grid": "grids",
    "path_cost": "dynamics",
    "sample": "sampling",
    "sample_batches": "sampling",
    "sliced_wasserstein": "distances",
}

__all__ = [
    "NDM",
    "Blur",
    "BoundTerms",
    "CalibratedVariance",
    "ConstantVolatility",
    "CosineSchedule",
    "Curve",
    "DDPMSchedule",
    "Decoder",
    "Denoiser",
    "DirectDenoiser",
    "DiscretizedDecoder",
    "Estimate",
    "GaussianDecoder",
    "GuidedDenoiser",
    "Identity",
    "LearnedSchedule",
    "LearnedVariance",
    "LearnedVolatility",
    "LinearSchedule",
    "LogLikelihood",
    "MixtureBase",
    "Neural",
    "NoiseLevel",
    "OTSchedule",
    "Part",
    "PathCost",
    "PosteriorVariance",
    "PredictedVariance",
    "ReverseVariance",
    "SampleDistance",
    "Scale",
    "Schedule",
    "Separable",
    "Standardize",
    "Transform",
    "WeightedDecoder",
    "acceleration",
    "curvature",
    "log_likelihood",
    "mmd",
    "ode_paths",
    "optimal_grid",
    "path_cost",
    "sample",
    "sample_batches",
    "sliced_wasserstein",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")  # as in ndm.networks.UNet
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"ndm.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
