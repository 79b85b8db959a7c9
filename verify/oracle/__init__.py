"""The combine computed again: in NumPy float64, written without PyTorch, with a rigorous bound on PyTorch's error.

``combine`` is the mathematics. ``bound`` (with ``ball``) bounds the error of each element for any input bits.
``formats`` holds what is assumed of PyTorch's arithmetic. The oracle of the whole network serves only tests:
``tests/helpers/network_oracle``.
"""
