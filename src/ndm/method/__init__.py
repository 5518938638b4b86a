"""Schedules, transformations, denoisers, decoders, reverse variances, the process they form, and its bound.

The public names are exported by :mod:`ndm`. The mathematics is in docs/method.md.
"""
