r"""Neural Diffusion Models for PyTorch: diffusion models whose forward process is learned.

A model is four parts put together, a noise schedule, a data transformation, a denoiser and a decoder; the bound, the
samplers and the likelihood are written once against those four.
"""

import sys
from typing import TYPE_CHECKING


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

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.evaluation.distances import SampleDistance, mmd, sliced_wasserstein
    from ndm.inference.dynamics import PathCost, acceleration, curvature, ode_paths, path_cost
    from ndm.inference.likelihood import LogLikelihood, log_likelihood
    from ndm.inference.options import SamplerOptions
    from ndm.inference.sampling import sample, sample_batches
    from ndm.method.bounds import BoundTerms
    from ndm.method.decoders import Decoder, DiscretizedDecoder, GaussianDecoder, WeightedDecoder
    from ndm.method.denoised_decoder import DenoisedDecoder
    from ndm.method.denoisers import Denoiser, DirectDenoiser, Estimate
    from ndm.method.encoding import TableEncoding
    from ndm.method.given_schedules import TableSchedule, VPSchedule
    from ndm.method.grids import optimal_grid
    from ndm.method.guidance import GuidedDenoiser
    from ndm.method.latents import GaussianLatent, Latent
    from ndm.method.learned_schedule import LearnedSchedule
    from ndm.method.mixed import MixedDecoder
    from ndm.method.mixed_denoiser import MixedDenoiser
    from ndm.method.mixture import MixtureBase
    from ndm.method.named_variances import LargeVariance, RangeVariance
    from ndm.method.noise import DimensionNoise, FrequencyNoise, LatentNoise, LearnedNoise, Noise
    from ndm.method.parts import Part
    from ndm.method.schedules import CosineSchedule, DDPMSchedule, LinearSchedule, NoiseLevel, OTSchedule, Schedule
    from ndm.method.standardization import Standardize
    from ndm.method.table_mixture import TableMixtureBase
    from ndm.method.transforms import Blur, Curve, Identity, Neural, Scale, Separable, Transform
    from ndm.method.variances import (
        CalibratedVariance,
        LearnedVariance,
        PosteriorVariance,
        PredictedVariance,
        ReverseVariance,
    )
    from ndm.method.volatility import ConstantVolatility, LearnedVolatility
    from ndm.model import NDM
    from ndm.networks.pretrained import from_diffusers

__version__ = "0.1.0"

#: The module of each public name. It is imported when the name is first used, so that `ndm --help` needs no PyTorch.
_HOMES = {
    "Blur": "method.transforms",
    "BoundTerms": "method.bounds",
    "CalibratedVariance": "method.variances",
    "ConstantVolatility": "method.volatility",
    "CosineSchedule": "method.schedules",
    "Curve": "method.transforms",
    "DDPMSchedule": "method.schedules",
    "Decoder": "method.decoders",
    "DenoisedDecoder": "method.denoised_decoder",
    "Denoiser": "method.denoisers",
    "DimensionNoise": "method.noise",
    "DirectDenoiser": "method.denoisers",
    "DiscretizedDecoder": "method.decoders",
    "Estimate": "method.denoisers",
    "FrequencyNoise": "method.noise",
    "GaussianDecoder": "method.decoders",
    "GaussianLatent": "method.latents",
    "GuidedDenoiser": "method.guidance",
    "Identity": "method.transforms",
    "LargeVariance": "method.named_variances",
    "Latent": "method.latents",
    "LatentNoise": "method.noise",
    "LearnedNoise": "method.noise",
    "LearnedSchedule": "method.learned_schedule",
    "LearnedVariance": "method.variances",
    "LearnedVolatility": "method.volatility",
    "LinearSchedule": "method.schedules",
    "LogLikelihood": "inference.likelihood",
    "MixedDecoder": "method.mixed",
    "MixedDenoiser": "method.mixed_denoiser",
    "MixtureBase": "method.mixture",
    "NDM": "model",
    "Neural": "method.transforms",
    "Noise": "method.noise",
    "NoiseLevel": "method.schedules",
    "OTSchedule": "method.schedules",
    "Part": "method.parts",
    "PathCost": "inference.dynamics",
    "PosteriorVariance": "method.variances",
    "PredictedVariance": "method.variances",
    "RangeVariance": "method.named_variances",
    "ReverseVariance": "method.variances",
    "SampleDistance": "evaluation.distances",
    "SamplerOptions": "inference.options",
    "Scale": "method.transforms",
    "Schedule": "method.schedules",
    "Separable": "method.transforms",
    "Standardize": "method.standardization",
    "TableEncoding": "method.encoding",
    "TableMixtureBase": "method.table_mixture",
    "TableSchedule": "method.given_schedules",
    "Transform": "method.transforms",
    "VPSchedule": "method.given_schedules",
    "WeightedDecoder": "method.decoders",
    "acceleration": "inference.dynamics",
    "curvature": "inference.dynamics",
    "from_diffusers": "networks.pretrained",
    "log_likelihood": "inference.likelihood",
    "mmd": "evaluation.distances",
    "ode_paths": "inference.dynamics",
    "optimal_grid": "method.grids",
    "path_cost": "inference.dynamics",
    "sample": "inference.sampling",
    "sample_batches": "inference.sampling",
    "sliced_wasserstein": "evaluation.distances",
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
    "DenoisedDecoder",
    "Denoiser",
    "DimensionNoise",
    "DirectDenoiser",
    "DiscretizedDecoder",
    "Estimate",
    "FrequencyNoise",
    "GaussianDecoder",
    "GaussianLatent",
    "GuidedDenoiser",
    "Identity",
    "LargeVariance",
    "Latent",
    "LatentNoise",
    "LearnedNoise",
    "LearnedSchedule",
    "LearnedVariance",
    "LearnedVolatility",
    "LinearSchedule",
    "LogLikelihood",
    "MixedDecoder",
    "MixedDenoiser",
    "MixtureBase",
    "Neural",
    "Noise",
    "NoiseLevel",
    "OTSchedule",
    "Part",
    "PathCost",
    "PosteriorVariance",
    "PredictedVariance",
    "RangeVariance",
    "ReverseVariance",
    "SampleDistance",
    "SamplerOptions",
    "Scale",
    "Schedule",
    "Separable",
    "Standardize",
    "TableEncoding",
    "TableMixtureBase",
    "TableSchedule",
    "Transform",
    "VPSchedule",
    "WeightedDecoder",
    "acceleration",
    "curvature",
    "from_diffusers",
    "log_likelihood",
    "mmd",
    "ode_paths",
    "optimal_grid",
    "path_cost",
    "sample",
    "sample_batches",
    "sliced_wasserstein",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
