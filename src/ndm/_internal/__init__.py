"""Internal utilities: random numbers, distributed processes, precision, conversion of arguments to tensors, signals."""
