"""The parts of ``benchmarks/suite.py``: controlled comparisons of models at equal parameters and equal training time.

What is equal in a row of the suite, and how that is ensured:

* parameters: every model has as many as the row's first one, the reference, to within half a percent, F's included.
  The widths are searched for, and a row for which there are none is refused (:mod:`suite.building`).
* time: all models of a row and seed are trained in one process with one thread, in turns of a few seconds, and every
  one stops when its own steps have taken the budget in seconds of the process (:mod:`suite.racing`).
* steps: the averaged weights are kept on a grid of steps that is the same for all, and measured as well at the last
  one that every model has reached.
* chance: the batches, times and noise of a step are the same for all models of a seed; so are those of a measurement,
  for all models and seeds, and differences are paired by example (:mod:`suite.measuring`).
* tuning: one grid for every model, judged on validation data with one budget (:mod:`suite.jobs`).

A row that is run again is held against its results by :mod:`suite.repeating`.
"""
