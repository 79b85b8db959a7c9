"""Rounding or bug: a step that cannot equal the reference in bits is judged with a stated probability of error.

``movement`` says how far an operator's result may move, ``randomised`` moves it, ``resample`` repeats a step so on a
rank, ``deviations`` keeps how far its ``x_t`` lay, ``tails`` and ``fits`` turn that into probabilities, ``decide`` and
``findings`` judge. ``operators`` and ``culprits`` find the first operator that rounding does not explain. The method,
and what it assumes, is ``verify/guides/rounding.md``.
"""
