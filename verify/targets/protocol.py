"""What a target offers: whose loops are under test, and the denoiser they run with.

A target of your own is any object with the attributes of :class:`Target`; nothing need be inherited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from verify.errors import BadInput, Unjudged
from verify.expected import Exchanges
from verify.layout import Layout
from verify.protocols import Denoiser, Group, Loop
from verify.request import DenoiseRequest, ResolvedRequest
from verify.schedule import Schedule
from verify.verdict import Finding

if TYPE_CHECKING:
    from verify.bagel.options import BagelOptions

REFERENCE = "reference"
ON_DEVICE, ON_HOST = STEP_SIZES = ("device", "host")


@dataclass(frozen=True)
class ModelOptions:
    """How the network under the loops is made.

    Attributes:
        preset: the model's size; unused when a checkpoint names its own.
        dtype: the network's dtype, as torch spells it.
        autocast: whether the loop runs under autocast to that dtype.
        checkpoint: a folder in BAGEL-7B-MoT's layout; None for seeded weights.
        step_sizes: ``device``, as Bagel's evaluation has them: a half-precision velocity rounds a step size on the GPU
            to its own dtype; or ``host``, as its app has them: in float32.
        bagel: what only Bagel is asked; None for nothing.
    """

    preset: str = "tiny"
    dtype: str = "bfloat16"
    autocast: bool = False
    checkpoint: str | None = None
    step_sizes: str = ON_DEVICE
    bagel: BagelOptions | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; of Bagel's only those that were given."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "bagel"}
        return own | ({} if self.bagel is None else self.bagel.given())

    @property
    def torch_dtype(self) -> torch.dtype:
        """The network's dtype."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True)
class Prepared:
    """All that a loop needs on one rank, ready before its clock starts.

    Attributes:
        denoiser: evaluates the request's branches.
        x_0: this rank's initial latent on its device, all of it. Rank 0's is the request's noise; the others' must
            differ from it, or a loop that forgets to share it would look right. A tensor of any shape and dtype; or
            several by name, as video and audio: a loop then evaluates, observes and returns mappings of the same names.
        caches: the frozen tensors of each branch's context, by branch and then by name. They are looked up again after
            the loop, so a mapping that reads the cache itself shows a tensor that was replaced. A target that cannot
            show them leaves it empty, and the check on them says unknown.
        notes: what the reader of a report must know: parts that were substituted, say.
        group: what the loops send over, where the target has a process group of its own: of all ranks, or of the ranks
            with this one's shard, in the order of branch groups. Each call of it makes one exchange of its own name,
            bytes and ranks; one that makes others says which in an attribute ``exchanges``, see
            ``verify/trace/exchange_log.py``.
        followed: the schedule that the loops are known to follow, where that is not the one they are held to. The
            reference follows it too, collectives and branch evaluations are counted against it, and the check
            ``schedule`` fails: one fault is one finding.
        environment: what else decides bits here, to be shown and to be compared between ranks.
        draws: said of loops that draw random numbers. Nothing rests on it any more: generators may move, and what a
            loop draws is judged by its ``x_t``.
        alike: pairs of branches that have one velocity by design, as ``img`` and ``gen`` do without an image.
        sends: what the loops make of a velocity before they gather it, where they send another format on purpose:
            ``sends=lambda velocity: velocity.half()``; or, before they sum it over the ranks, this rank's weight:
            ``sends=lambda velocity: weight * velocity``. None holds a gather to the network's own bytes, and a sum to
            those bytes times one number.
        input: what the loops give the network of the ``x_t`` that they show, and the step, where it is not ``x_t``
            itself: a sampler that scales it, a condition that is concatenated. Each evaluation is compared with it.
        state: gives what else the sampler holds now, by name: a scheduler's history, a step cache, momentum, random
            generators. It is asked before the first evaluation and after each step. What two ranks, or a rank and the
            reference, show under one name must have the same bytes; what only one shows is its own.
        equal_noise: every rank draws the request's noise from the same seed, so that loops share nothing at the start.
            The suite then checks that ``x_0`` has the same bytes on every rank.
        alone: the denoiser of a single process, where ``denoiser`` computes each velocity together with other ranks.
            The reference evaluates with it.
    """

    denoiser: Denoiser
    x_0: Any  # A tensor, or a mapping of tensors by name.
    caches: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    group: Group | None = None
    followed: Schedule | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = False
    alike: tuple[tuple[str, str], ...] = ()
    sends: Callable[[Tensor], Tensor] | None = None
    input: Callable[[Any, int], Any] | None = None
    state: Callable[[], Mapping[str, Any]] | None = None
    equal_noise: bool = False
    alone: Denoiser | None = None


@runtime_checkable
class Target(Protocol):
    """Whose loops are under test.

    More methods are looked for, and done without where they are missing:

    - ``branches(request) -> tuple of names``, in rank order, where they are not Bagel's;
    - ``schedule(request) -> Schedule`` that the loops are held to, where it is not Bagel's;
    - ``layout(world_size) -> Layout`` of so many ranks, where each is not a branch group of its own; it refuses a
      number that it cannot lay out by BadInput. ``ranks`` is then the number that it wants where none is asked for;
    - ``picture(request, options, latent) -> (PNG file as bytes, note)`` of a final latent, for ``--image``;
    - ``warm_up``: ``MODULE:FUNCTION``, which the process that ranks are forked from on a CPU calls once, for what takes
      long to import; ``verify matrix`` reads it;
    - ``any_world``: true where the target works though torch.distributed's default group holds other processes beside
      the ranks of the run, as under an engine. Its loops are then judged in a larger world too;
    - ``resume(denoiser, request, x_t, step, state, observe)``, for ``--reference inductive`` where a sampler remembers
      more than ``x_t``: goes on with the reference from what was shown before ``step``, ``x_t`` and state, in copies
      that are its own, and shows what it has after it by ``observe(step, x_t)``, where it is ended;
    - ``explain(finding) -> tuple of lines`` to add to a failing finding: a public report of the fault, say.

    They are called in the controlling process too, so whatever takes long to import belongs in ``prepare``. A target
    may also name the fields of a request that it does not read, as ``ignores``: changing them need not matter.

    Attributes:
        name: what reports call it.
        loops: its loops by name, ``reference`` among them: the one that runs in a single process. Without ``--loops``
            all others are judged.
        expects: for each loop the version (``broadcast``, ``local``, ``round_robin``, ``reduce``) whose collectives and
            branch evaluations it is held to; or :class:`verify.expected.Exchanges`, which says them; or ``any``.
    """

    name: str
    loops: Mapping[str, Loop]
    expects: Mapping[str, str | Exchanges]

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """Builds the denoiser with weights that are equal on every rank.

        Called for each loop of a request, on all ranks at a time, so that no loop finds what another left in a
        denoiser or scheduler; what takes long to make (weights, groups) is for the target to keep. It may use
        ``torch.distributed``, whose default group holds the ranks. Only the fields of the request that a target reads
        mean anything to it; one that it cannot serve it refuses.

        Raises:
            BadInput: the request or the options cannot be served.
            Unjudged: they cannot be served here: something is not installed, or cannot be driven.
        """
        ...


def understood(target: Target, request: DenoiseRequest) -> ResolvedRequest:
    """The request with the schedule and branches that ``target`` makes of it.

    Raises:
        BadInput: its schedule is none, its branches have one name twice, a method of its raised, or it refuses the
            request.
    """
    schedule, branches = request.schedule, request.branches
    if hasattr(target, "schedule"):
        schedule = sound(_asked(target, "schedule", request), target, "method schedule")
    if hasattr(target, "branches"):
        branches = tuple(_asked(target, "branches", request))
    if len(set(branches)) < len(branches):
        raise BadInput(
            f"the branches of target {target.name} are {', '.join(branches)}, expected names that differ; mend its "
            "method branches"
        )
    return request.resolved(schedule, branches)


def layout_of(target: Target, world_size: int) -> Layout | None:
    """How ``target`` lays out so many ranks; None where it does not say.

    Raises:
        BadInput: it refuses the number, or lays out another one.
    """
    if not hasattr(target, "layout"):
        return None
    layout = _asked(target, "layout", world_size)
    if not isinstance(layout, Layout):
        raise BadInput(
            f"method layout of target {target.name} returned a {type(layout).__name__}, expected a "
            "verify.layout.Layout; mend it"
        )
    if layout.ranks != world_size:
        raise BadInput.of(
            "world size",
            world_size,
            f"{layout.ranks}, the {layout.branch_groups} branch groups of {layout.shards} that the layout of target "
            f"{target.name} has",
            "choose --world-size so",
        )
    return layout


def _asked(target: Target, method: str, of: Any) -> Any:
    """What a method of the target answers; an exception of it is told as the target's."""
    try:
        return getattr(target, method)(of)
    except (BadInput, Unjudged):
        raise
    except Exception as error:
        raise BadInput(
            f"method {method} of target {target.name} raised {type(error).__name__}: {error}; expected it to answer "
            "for every request that the target does not refuse by BadInput; mend it"
        ) from error


def sound(schedule: Schedule, target: Target, made_by: str) -> Schedule:
    """``schedule``, if steps can be taken by it.

    It has as many timesteps as step sizes and guided flags, the sizes are positive and finite, or all NaN where a
    sampler has none, and the times do not rise. Where times lie on [0, 1], as a flow's do, each size is the distance to
    the next time, and the last one reaches 0: to 1 % of it, since an engine may round sizes to 16 bits.

    Raises:
        BadInput: it is not so; the line names ``target`` and what of it made the schedule.
    """
    counts = len(schedule.timesteps), len(schedule.dts), len(schedule.guided)
    if len(set(counts)) > 1:
        raise BadInput(
            "the schedule of target {} has {} timesteps, {} dts and {} guided flags, expected as many of each; mend "
            "its {}, see verify/targets/protocol.py".format(target.name, *counts, made_by)
        )
    for what in ("evaluations", "experts"):
        said = len(getattr(schedule, what))
        if said not in (0, schedule.steps):
            raise BadInput(
                f"the schedule of target {target.name} has {schedule.steps} timesteps and {said} {what}, expected as "
                f"many or none; mend its {made_by}, see verify/schedule.py"
            )
    times, sizes = schedule.timesteps, schedule.dts.detach().cpu().double().tolist()
    sized = schedule.has_sizes
    flow = sized and all(0.0 <= t <= 1.001 for t in times)
    for step, (t, size, after) in enumerate(zip(times, sizes, (*times[1:], 0.0), strict=True)):
        expected = ""
        if sized and not (math.isfinite(size) and size > 0):
            expected = "a positive, finite step size"
        elif not math.isfinite(t) or (step + 1 < len(times) and after > t):
            expected = "times that are finite and do not rise"
        elif flow and abs(t - after - size) > 0.01 * size:
            expected = f"dt = {t - after:.6g}, the distance to the next time {after:.6g}"
        if expected:
            raise BadInput(
                f"the schedule of target {target.name} has t = {t:.6g} and dt = {size:.6g} in step {step}, expected "
                f"{expected}; mend its {made_by}, see verify/targets/protocol.py"
            )
    return schedule


def explained(target: Target, finding: Finding) -> tuple[str, ...]:
    """What ``target`` has to say about a failing finding; an exception of it is told, and costs no finding."""
    if not hasattr(target, "explain"):
        return ()
    try:
        return tuple(target.explain(finding))
    except Exception as error:
        return (f"method explain of target {target.name} raised {type(error).__name__}: {error}",)


def fits_any_world(target: Target) -> bool:
    """Whether ``target`` works where torch.distributed's default group holds other processes too."""
    return bool(getattr(target, "any_world", False))


def default_loops(target: Target) -> tuple[str, ...]:
    """The loops that are judged when none are named: the target's ``default``, else all but the reference."""
    named = getattr(target, "default", None)
    return tuple(named) if named is not None else tuple(name for name in target.loops if name != REFERENCE)
