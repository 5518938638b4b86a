r"""Neural Diffusion Models for PyTorch: diffusion models whose forward process is learned.

A model is four parts put together, a noise schedule, a data transformation, a denoiser and a decoder; the bound, the
samplers and the likelihood are written once against those four.
"""

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
