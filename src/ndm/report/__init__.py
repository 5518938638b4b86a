"""A report on one or several runs: one HTML page that needs nothing but itself.

:func:`report` is the door. Behind it, one file each: what a run's folder holds, what is measured with its model, how
curves and pixels become pictures, the sections, and the page they are put on.
"""

from ndm.report.page import report

__all__ = ["report"]
