"""Writing samples block by block to pictures, tables or arrays."""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.samples.places import FORMATS, require_place, require_table_place
    from ndm.samples.writing import (
        SampleFile,
        class_turns,
        classes_in_turn,
        formula_warning,
        not_finite,
        sample_file,
        save_samples,
        table_of,
    )

_HOMES = {
    "FORMATS": "places",
    "SampleFile": "writing",
    "class_turns": "writing",
    "classes_in_turn": "writing",
    "formula_warning": "writing",
    "not_finite": "writing",
    "require_place": "places",
    "require_table_place": "places",
    "sample_file": "writing",
    "save_samples": "writing",
    "table_of": "writing",
}

__all__ = [
    "FORMATS",
    "SampleFile",
    "class_turns",
    "classes_in_turn",
    "formula_warning",
    "not_finite",
    "require_place",
    "require_table_place",
    "sample_file",
    "save_samples",
    "table_of",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
