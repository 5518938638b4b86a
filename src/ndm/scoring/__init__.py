r"""Scoring of every row of a data set: bound and log-likelihood with their errors, written to a file.

Rows are read, scored and written in blocks, so that memory use does not depend on their number. An interrupted scoring
is resumed from OUT.partial/blocks, which contains the completed blocks with checksums. The result of a row depends only
on the settings and the row, not on interruptions.
"""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.scoring.checks import PRECISIONS
    from ndm.scoring.distilled import DistilledScore, FastScores
    from ndm.scoring.distilling import distill
    from ndm.scoring.rows import ExampleRows, ImageRows, MixedRows, Rows, TableRows
    from ndm.scoring.scores import Scores, score
    from ndm.scoring.tasks import score_block

_HOMES = {
    "PRECISIONS": "checks",
    "DistilledScore": "distilled",
    "FastScores": "distilled",
    "distill": "distilling",
    "ExampleRows": "rows",
    "ImageRows": "rows",
    "MixedRows": "rows",
    "Rows": "rows",
    "Scores": "scores",
    "TableRows": "rows",
    "score": "scores",
    "score_block": "tasks",
}

__all__ = [
    "PRECISIONS",
    "DistilledScore",
    "ExampleRows",
    "FastScores",
    "ImageRows",
    "MixedRows",
    "Rows",
    "Scores",
    "TableRows",
    "distill",
    "score",
    "score_block",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
