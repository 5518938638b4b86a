"""The parts of ``benchmarks/suite.py``: what is compared, how it is built, and how it is measured."""
