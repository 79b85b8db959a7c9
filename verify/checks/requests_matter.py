"""Claim: the requests judged exercise every parameter: a loop that ignores one would have shown."""

from __future__ import annotations

from collections.abc import Mapping

from verify.verdict import Compared, Finding, Verdict

NAME = "requests_matter"


def requests_matter(shown_by: Mapping[str, str | None], left_out: Mapping[str, str], elements: int) -> Finding:
    """Judges that changing any one parameter changes what the reference computes for some request of the set.

    Args:
        shown_by: for each parameter, the request that shows it, in words; None where no request does.
        left_out: parameters that could not be changed, and why.
        elements: how many elements were compared.
    """
    compared = Compared(0, elements)
    details = tuple(f"{name}: shown by {request}" for name, request in shown_by.items() if request is not None)
    details += tuple(f"{name}: not varied, {reason}" for name, reason in left_out.items())
    idle = [name for name, request in shown_by.items() if request is None]
    if idle:
        summary = (
            f"not exercised: {', '.join(idle)}; changing it changes no byte of the reference in any request, so that a "
            "loop that ignores it cannot be told from a right one"
        )
        return Finding(NAME, "*", Verdict.UNKNOWN, summary, compared, details=details)
    if not shown_by:
        return Finding(NAME, "*", Verdict.UNKNOWN, "no parameter could be varied", compared, details=details)
    summary = f"each of {len(shown_by)} parameters changes bytes of the reference in some request"
    if left_out:
        summary += f"; not varied: {', '.join(left_out)}"
    return Finding(NAME, "*", Verdict.PASS, summary, compared, details=details)
