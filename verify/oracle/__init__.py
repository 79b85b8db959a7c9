"""The reference of the reference: schedule, combine, network and loop in NumPy float64, written without PyTorch.

``schedule``, ``combine``, ``exact``, ``model`` and ``loop`` are the mathematics. Two analyses say how far PyTorch may
be from it: ``bound`` (with ``ball``) bounds each element of the combine rigorously, for any input bits; ``rounding``
follows the roundings of a whole forward pass and step. ``formats`` holds what both assume of PyTorch's arithmetic.
"""
