"""The method: schedules, transformations, denoisers, decoders, reverse variances, and the bound of the process they
make.

The public names are those of :mod:`ndm`. The mathematics is in docs/method.md.
"""
