"""The parts of ``benchmarks/peers.py``: other implementations, run side by side with this one.

Nothing of the peers is kept here: each part is given a checkout, loads the peer's own classes from it, and says what it
calls. What is equal between a peer and ours:

* data: the same batches in the same order, and the same fresh examples to measure with (:mod:`peers.racing`).
* time: all models of a seed are trained in one process with one thread, in turns, for equal seconds of the processor.
* parameters: ours are made as wide as it takes to have as many as the peer, all its networks counted.
"""
