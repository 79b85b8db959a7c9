"""The requests that a run judges: one, a sequence in which the first comes again, or a matrix. Pure.

One request hides what is hard-coded for it: a scale, a bound, a shift, a length, a number of tokens. The first request
of a process hides what survives a request. So a sequence is judged where that costs seconds, and a matrix where a merge
depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from verify.errors import BadInput
from verify.request import PIXELS_PER_TOKEN_SIDE, DenoiseRequest, RenormType
from verify.schedule import Schedule

ONE, SEQUENCE, MATRIX = REQUEST_SETS = ("one", "sequence", "matrix")

_HALF, _FULL = "bfloat16", "float32"


@dataclass(frozen=True)
class Asked:
    """One request of a set.

    Attributes:
        request: what to denoise.
        dtype: of the network; None for the job's own.
        again: whether it is the first one once more, after all others.
        optional: whether a loop need not serve it: it has other branches than the request asked for.
    """

    request: DenoiseRequest
    dtype: str | None = None
    again: bool = False
    optional: bool = False

    def beside(self, first: DenoiseRequest) -> str:
        """What tells it from the first request of its set, in words."""
        if self.again:
            return "the first one again"
        words = {name: say(self.request) for name, say in _IN_WORDS.items()}
        told = [said for name, said in words.items() if said != _IN_WORDS[name](first)]
        return ", ".join(told + ([self.dtype] if self.dtype else []))


_IN_WORDS: dict[str, Callable[[DenoiseRequest], str]] = {
    "seed": lambda r: f"seed {r.seed}",
    "size": lambda r: f"{r.height}x{r.width}",
    "num_timesteps": lambda r: f"{r.num_timesteps} timesteps",
    "timestep_shift": lambda r: f"shift {r.timestep_shift:g}",
    "cfg_interval": lambda r: f"interval {r.cfg_interval[0]:g} to {r.cfg_interval[1]:g}",
    "cfg_text_scale": lambda r: f"text scale {r.cfg_text_scale:g}",
    "cfg_img_scale": lambda r: f"image scale {r.cfg_img_scale:g}",
    "cfg_renorm_type": lambda r: f"{r.cfg_renorm_type} renorm",
    "cfg_renorm_min": lambda r: f"renorm min {r.cfg_renorm_min:g}",
}


def sequence_of(request: DenoiseRequest, any_branches: bool = False) -> tuple[Asked, ...]:
    """The request, others of other values, and the request again.

    The second has its size and length, so that what is kept by either meets other contents. The third has neither, so
    that a buffer of the first one's size, or a table of its length, does not fit. With ``any_branches`` a fourth guides
    by the image where the first does not, or the other way round: what engines do to two branches and to three is
    different code.
    """
    kept = _changed(request)
    height, width = (144, 112) if (request.height, request.width) != (144, 112) else (112, 80)
    other = replace(
        kept,
        seed=_other_seed(request.seed, 14),
        height=height,
        width=width,
        num_timesteps=9 if request.num_timesteps != 9 else 10,
        timestep_shift=2.0 if kept.timestep_shift != 2.0 else 3.0,
        cfg_renorm_type=_third(request.cfg_renorm_type, kept.cfg_renorm_type),
        # A scale under which velocities grow far, for loops that bound them; and a renorm_min near 1, where it binds.
        # The second request's is low, so that there the type of the renorm shows.
        cfg_text_scale=_other(request.cfg_text_scale, 30.0, 40.0),
        cfg_renorm_min=0.9 if request.cfg_renorm_min != 0.9 else 0.8,
        cfg_interval=(0.0, 0.9) if request.cfg_interval != (0.0, 0.9) else (0.4, 1.0),
    )
    others = [Asked(kept), Asked(other)]
    if any_branches and request.cfg_text_scale > 1.0:
        others.append(Asked(_with_other_branches(request), optional=True))
    return Asked(request), *others, Asked(request, again=True)


def _with_other_branches(request: DenoiseRequest) -> DenoiseRequest:
    """A short request with the image's branch where the given one has none, and without it where it has one.

    With three branches the scales are such that the renorm shortens; with two some tokens are shorter than the
    conditional ones, as in :func:`_changed`.
    """
    guided = request.cfg_img_scale > 1.0
    return replace(
        request,
        seed=_other_seed(request.seed, 21),
        # More than 64 tokens, for what is done in blocks of so many.
        height=160,
        width=128 if (request.height, request.width) != (160, 128) else 144,
        num_timesteps=7 if request.num_timesteps != 7 else 8,
        cfg_img_scale=1.0 if guided else 1.7,  # No scale that an engine would have by default.
        cfg_text_scale=_other(request.cfg_text_scale, 1.2, 1.1) if guided else 4.0,
        cfg_renorm_min=0.0,
    )


def _changed(request: DenoiseRequest) -> DenoiseRequest:
    """Another request of the same size, length, interval and branches.

    It holds the norm of each token, under a low scale: some tokens are then shorter than the conditional ones, and a
    renorm that may amplify shows.
    """
    return replace(
        request,
        seed=_other_seed(request.seed),
        timestep_shift=2.0 if request.timestep_shift != 2.0 else 3.0,
        cfg_text_scale=_other(request.cfg_text_scale, 1.2, 1.1),
        cfg_img_scale=_other(request.cfg_img_scale, 2.0, 1.5),
        cfg_renorm_type="channel" if request.cfg_renorm_type != "channel" else "text_channel",
        cfg_renorm_min=0.25 if request.cfg_renorm_min != 0.25 else 0.0,
    )


def _third(*taken: RenormType) -> RenormType:
    return next(each for each in get_args(RenormType) if each not in taken)


def _other(scale: float, one: float, another: float) -> float:
    """Another scale; none where the scale evaluates no branch."""
    if scale <= 1.0:
        return scale
    return one if scale != one else another


def _other_seed(seed: int, by: int = 7) -> int:
    return seed + by if seed + by < 2**63 else seed - by


def _row(
    renorm: str, image: float, least: float, text: float, shift: float, interval: tuple[float, float], points: int,
    size: tuple[int, int], dtype: str, seed: int,
) -> Asked:  # fmt: skip
    request = DenoiseRequest(
        height=size[0],
        width=size[1],
        num_timesteps=points,
        timestep_shift=shift,
        cfg_interval=interval,
        cfg_text_scale=text,
        cfg_img_scale=image,
        cfg_renorm_type=renorm,  # type: ignore[arg-type]
        cfg_renorm_min=least,
        seed=seed,
    )
    return Asked(request, dtype)


# fmt: off
_MATRIX = (
    # Every two classes of values of any two parameters meet in a row; tests/unit/runner/test_requests.py has the
    # classes. Counts of 10 to 13 put a step on a bound: on 0.4 with shift 3 and 12, and shift 2 and 13; on 0.8 with
    # shift 2 and 10; on 1 always. A seed beyond 32 bits is one that some generator may cut off. Only
    # float64 resolves the 1e-8 that the renorm adds to a norm.
    #    renorm          image least text  shift interval     points size       dtype      seed
    _row("global",       1.0,  0.0,  4.0,  3.0, (0.4, 1.0),    12,  (144, 112), _HALF,     1),
    _row("text_channel", 2.5,  0.0,  1.05, 3.0, (0.0, 1.0),     6,  (160, 128), _HALF,     2),
    _row("channel",      1.2,  0.3,  4.0,  1.0, (0.4, 1.0),    67,  (144, 144), _HALF,     2**40 + 3),
    _row("channel",      1.5,  1.0,  2.5,  3.0, (0.4, 1.0),     5,  (80, 48),   _FULL,     4),
    _row("global",       3.0,  1.0,  7.0,  1.0, (0.0, 1.0),    11,  (176, 192), _FULL,     5),
    _row("text_channel", 1.0,  1.0,  4.0,  1.0, (0.2, 0.7),     6,  (128, 160), _FULL,     6),
    _row("text_channel", 1.5,  0.6,  1.5,  2.0, (0.4, 1.0),    13,  (112, 112), _FULL,     7),
    _row("channel",      1.0,  1.0,  1.05, 0.5, (0.0, 1.0),    70,  (16, 48),   _HALF,     8),
    _row("global",       1.5,  0.0,  1.5,  1.0, (0.3, 0.9),    66,  (112, 144), _FULL,     9),
    _row("global",       1.5,  0.3,  4.0,  5.0, (0.0, 1.0),     7,  (144, 160), "float16", 10),
    _row("channel",      2.0,  0.0,  7.0,  2.0, (0.3, 0.8),    10,  (48, 80),   "float64", 11),
    _row("text_channel", 1.0,  0.6,  2.5,  3.0, (0.2, 0.9),    80,  (192, 176), _HALF,     12),
    # Equal bounds: no step is guided, whatever the scales say.
    _row("global",       1.0,  0.0,  4.0,  3.0, (0.5, 0.5),     6,  (112, 80),  _HALF,     13),
)
# fmt: on


def matrix(varies_dtype: bool = True, image: bool | None = None) -> tuple[Asked, ...]:
    """The pairwise covering set of requests.

    Args:
        varies_dtype: whether the network's dtype is varied too, which builds its weights anew.
        image: True or False where the ranks serve only requests with, or without, image guidance: the rows of the other
            kind are then given it, or left without it. None for both kinds.
    """
    rows = _MATRIX if varies_dtype else tuple(replace(row, dtype=None) for row in _MATRIX)
    if image is None:
        return rows
    return tuple(
        replace(row, request=replace(row.request, cfg_img_scale=max(row.request.cfg_img_scale, 1.5) if image else 1.0))
        for row in rows
    )


def requests_of(
    kind: str, request: DenoiseRequest, *, varies_dtype: bool, image: bool | None, any_branches: bool = False
) -> tuple[Asked, ...]:
    """The requests of a set in the order in which they are judged, the one asked for first.

    Args:
        kind: the set.
        request: the request asked for.
        varies_dtype: as for :func:`matrix`.
        image: likewise.
        any_branches: as for :func:`sequence_of`.

    Raises:
        BadInput: there is no such set.
    """
    if kind == ONE:
        return (Asked(request),)
    if kind == SEQUENCE:
        return sequence_of(request, any_branches)
    if kind == MATRIX:
        *sequence, again = sequence_of(request)
        return *sequence, *matrix(varies_dtype, image), again
    raise BadInput.of("requests", kind, f"one of {', '.join(REQUEST_SETS)}", "choose one")


# What a request can say, in the order of its fields; the network's dtype belongs to it here.
PARAMETERS = (
    "height", "width", "num_timesteps", "timestep_shift", "cfg_interval, lower bound", "cfg_interval, upper bound",
    "cfg_text_scale", "cfg_img_scale", "cfg_renorm_type", "cfg_renorm_min", "seed", "dtype",
)  # fmt: skip


def neighbours(asked: Asked, parameter: str, schedule: Schedule) -> Iterator[Asked]:
    """The request with nothing but ``parameter`` changed, the branches being the same; none where that cannot be.

    Args:
        asked: the request.
        parameter: one of :data:`PARAMETERS`.
        schedule: what the target makes of the request: a bound is moved just past a step that it guides.
    """
    request = asked.request
    guided = [t for t, inside in zip(schedule.timesteps, schedule.guided, strict=True) if inside]
    lower, upper = request.cfg_interval
    changes: dict[str, Any] = {}
    match parameter:
        case "height" | "width":
            side = getattr(request, parameter)
            changes[parameter] = side - PIXELS_PER_TOKEN_SIDE if side > PIXELS_PER_TOKEN_SIDE else 2 * side
        case "num_timesteps":
            changes[parameter] = request.num_timesteps + 1
        case "timestep_shift":
            changes[parameter] = request.timestep_shift + 0.5
        case "cfg_interval, lower bound" if guided:
            changes["cfg_interval"] = (min(max(guided[-1], lower), upper), upper)
        case "cfg_interval, upper bound" if len(guided) > 1:
            changes["cfg_interval"] = (lower, max(min(guided[1], upper), lower))
        case "cfg_text_scale" | "cfg_img_scale" if getattr(request, parameter) > 1.0:
            changes[parameter] = getattr(request, parameter) + 0.5
        case "cfg_renorm_type":
            changes[parameter] = _changed(request).cfg_renorm_type
        case "cfg_renorm_min":
            changes[parameter] = 1.0 if request.cfg_renorm_min < 1.0 else 0.0
        case "seed":
            changes[parameter] = _other_seed(request.seed)
        case "dtype" if asked.dtype is not None:
            yield replace(asked, dtype=_FULL if asked.dtype != _FULL else _HALF)
    if changes:
        yield replace(asked, request=replace(request, **changes))
