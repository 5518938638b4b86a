"""The parts of ``benchmarks/tables.py``: the files of finished cells, the other methods, and the differences."""
