"""Data sets with training, validation and test splits: points, digits, patterns, tables, images, tensors.

Names are imported when they are first used, so that a table does not import what images need.
"""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.data.base import SPLITS, Data, Examples, from_levels
    from ndm.data.choosing import Some, evenly_spaced, part_of
    from ndm.data.digits import Digits
    from ndm.data.images import Images
    from ndm.data.labels import check_labels, require_labels
    from ndm.data.patterns import Patterns
    from ndm.data.table import Table
    from ndm.data.tensors import Tensors
    from ndm.data.toys import Checkerboard, EightGaussians, Gaussian, Pinwheel, SwissRoll, Toy, TwoMoons

_HOMES = {
    "SPLITS": "base",
    "Checkerboard": "toys",
    "Data": "base",
    "Digits": "digits",
    "EightGaussians": "toys",
    "Examples": "base",
    "Gaussian": "toys",
    "Images": "images",
    "Patterns": "patterns",
    "Pinwheel": "toys",
    "Some": "choosing",
    "SwissRoll": "toys",
    "Table": "table",
    "Tensors": "tensors",
    "Toy": "toys",
    "TwoMoons": "toys",
    "check_labels": "labels",
    "evenly_spaced": "choosing",
    "from_levels": "base",
    "part_of": "choosing",
    "require_labels": "labels",
}

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

__getattr__, __dir__ = lazy(__name__, _HOMES)
