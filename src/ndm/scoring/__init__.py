r"""Every row of a data set scored by a model: the bound and the log-likelihood, each with its error, in a file.

For data of any number of rows. They are read, scored and written down a block at a time, so that memory is needed for
a block, and a run that was killed goes on where it was: OUT.partial/blocks holds what is done, each block with a
checksum. What a row gets depends on the settings and on the row, and on nothing that happened in between.
"""

from ndm.scoring.checks import PRECISIONS
from ndm.scoring.rows import ExampleRows, ImageRows, Rows, TableRows
from ndm.scoring.scores import Scores, score

__all__ = ["PRECISIONS", "ExampleRows", "ImageRows", "Rows", "Scores", "TableRows", "score"]
