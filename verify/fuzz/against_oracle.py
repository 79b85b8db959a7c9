"""The combine against NumPy's float64, within the oracle's derived bound."""

from __future__ import annotations

import numpy as np

from verify.fuzz.subject import Outcome, Subject
from verify.oracle.bound import combine_bound, combine_oracle, ulps, within


def against_oracle(s: Subject) -> Outcome:
    """Every element lies within the bound that :mod:`verify.oracle.bound` derives for it.

    Elements about which the bound claims nothing are not counted: an intermediate result may overflow there.
    """
    case = s.case
    seen = s.run().double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # A signalling NaN.
        gen, text, *img = (branch.double().cpu().numpy() for branch in s.laid.branches)
    settings = (case.text_scale, case.img_scale, case.renorm_type, case.renorm_min)
    expected = combine_oracle(gen, text, img[0] if img else None, *settings)
    bound = combine_bound(gen, text, img[0] if img else None, *settings, case.dtype)
    judged = int((~np.isinf(bound)).sum())
    kept = within(seen, expected, bound)
    if kept.all():
        return Outcome(judged)
    at = tuple(int(i) for i in np.argwhere(~kept)[0])
    allowed = ulps(bound, expected, case.dtype)[at]
    return Outcome(
        judged,
        f"element {list(at)} is {float(seen[at])!r}, the float64 oracle says {float(expected[at])!r} and allows "
        f"{float(bound[at]):.3g} ({float(allowed):.3g} ULP)",
    )
