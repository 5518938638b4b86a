"""What the rooms share and no user needs: random numbers, processes, precision, tensors from arguments, signals."""
