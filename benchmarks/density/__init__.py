"""The parts of ``benchmarks/tables.py``: densities of real tables by ``ndm train table`` and by two other methods.

:mod:`density.cells` keeps what is finished, :mod:`density.others` fits the other methods, :mod:`density.summary` tells
what was found.
"""
