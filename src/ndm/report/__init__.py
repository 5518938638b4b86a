"""Report on one or several runs: a self-contained HTML page.

The entry point is :func:`report`. The other modules read the run folders, measure the models, draw curves and images,
and build the sections and the page.
"""

from ndm.report.page import report

__all__ = ["report"]
