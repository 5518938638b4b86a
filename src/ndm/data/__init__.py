"""Data sets with training, validation and test splits: points, digits, patterns, tables, images, tensors."""

from ndm.data.base import SPLITS, Data, Examples, from_levels
from ndm.data.choosing import Some, evenly_spaced, part_of
from ndm.data.digits import Digits
from ndm.data.images import Images
from ndm.data.labels import check_labels, require_labels
from ndm.data.patterns import Patterns
from ndm.data.table import Table
from ndm.data.tensors import Tensors
from ndm.data.toys import Checkerboard, EightGaussians, Gaussian, Pinwheel, SwissRoll, Toy, TwoMoons

__all__ = [
    "SPLITS",
    "Checkerboard",
    "Data",
    "Digits",
    "EightGaussians",
    "Examples",
    "Gaussian",
    "Images",
    "Patterns",
    "Pinwheel",
    "Some",
    "SwissRoll",
    "Table",
    "Tensors",
    "Toy",
    "TwoMoons",
    "check_labels",
    "evenly_spaced",
    "from_levels",
    "part_of",
    "require_labels",
]
