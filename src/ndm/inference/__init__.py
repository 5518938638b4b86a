"""What a trained model is asked: samples, log-likelihoods, and the paths of its reverse ODE.

The public names are those of :mod:`ndm`.
"""
