"""Inference with a trained model: samples, log-likelihoods, and the paths of its reverse ODE.

The public names are exported by :mod:`ndm`.
"""
