r"""Data transformations F(x, gamma): the part that distinguishes a *neural* diffusion model.

A transformation is called with x once and returns a curve over gamma; see :class:`Curve`.
"""

from ndm.method.transforms.curve import Curve, LinearTransform, PathValue, Transform
from ndm.method.transforms.learned import LearnedTransform, Neural, Separable
from ndm.method.transforms.linear import Blur, Identity, Scale
from ndm.method.transforms.ranges import GammaRange

__all__ = [
    "Blur",
    "Curve",
    "GammaRange",
    "Identity",
    "LearnedTransform",
    "LinearTransform",
    "Neural",
    "PathValue",
    "Scale",
    "Separable",
    "Transform",
]
