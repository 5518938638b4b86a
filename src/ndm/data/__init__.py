"""Data sets small enough to be held in memory as tensors, each with its training, validation and test split."""

from ndm.data.base import SPLITS, Data, from_levels
from ndm.data.digits import Digits
from ndm.data.toys import Checkerboard, EightGaussians, Gaussian, Pinwheel, SwissRoll, Toy, TwoMoons

__all__ = [
    "SPLITS",
    "Checkerboard",
    "Data",
    "Digits",
    "EightGaussians",
    "Gaussian",
    "Pinwheel",
    "SwissRoll",
    "Toy",
    "TwoMoons",
    "from_levels",
]
