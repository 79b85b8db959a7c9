"""The built-in Bagel computed again: schedule, network and loop in NumPy float64, written without PyTorch.

``arithmetic``, ``model``, ``schedule`` and ``loop`` are the mathematics. ``rounding`` follows the roundings of a whole
forward pass and step, and says how far PyTorch may be from it. The combine is in ``verify.oracle``.
"""
