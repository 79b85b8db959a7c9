"""Which claims there are about a target: one for each way to run it, each of its loops and each check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from verify.checks.records import CHECKS
from verify.errors import BadInput
from verify.runner.job import Job
from verify.runner.requests import MATRIX, ONE
from verify.targets.finding import find_target
from verify.targets.loading import in_words
from verify.targets.protocol import REFERENCE, default_loops, understood

TEXT, IMAGE = "text", "text_and_image"
IMAGE_GUIDED: dict[str, Any] = {"cfg_img_scale": 1.5, "cfg_renorm_type": "text_channel"}
# What the report as a whole says: a check that is named nowhere here counts too.
VERDICT = "verdict"
EVERY_LOOP = "*"
# Ways that repeat a request in other surroundings: one claim each, about all that is found.
WHOLE = ("fresh_interpreters", "larger_world")
# A property of the target's own combine.
COMBINE = "combine"
_OF_ALL_LOOPS = ("loops_agree", "requests_matter", "not_vacuous")
# Checks of launched replicas and of windows, which the gate has not.
_ELSEWHERE = ("replicas_agree", "windows_agree")
CLAIMED = [name for name in CHECKS if name not in _ELSEWHERE]


@dataclass(frozen=True)
class Claim:
    """One thing that must hold of a target.

    Attributes:
        way: how it is run, as :func:`ways` names it; ``combine`` for a property of the target's own combine.
        loop: which of its loops; ``*`` for all of them together.
        check: which check must pass; ``verdict`` for the whole report.
        job: what is run.
        problem: why nothing can be judged, so that the claim fails.
    """

    way: str
    loop: str
    check: str
    job: Job
    problem: str = ""

    def __str__(self) -> str:
        """As pytest shows it."""
        return "-".join((self.way, self.loop, self.check))


@dataclass(frozen=True)
class Plan:
    """The claims about one target, and a line for whatever of it no claim is about."""

    claims: tuple[Claim, ...]
    not_judged: tuple[str, ...]


@lru_cache(maxsize=4)
def plan(job: Job) -> Plan:
    """What is claimed of a target.

    Args:
        job: its plain text request, as the options describe it.
    """
    claims: list[Claim] = []
    not_judged: list[str] = []
    for way, changed in ways(job):
        if way in WHOLE and any(claim.problem for claim in claims):
            continue
        refusal = _refusal(changed)
        misfit = "" if refusal else _misfit(job, changed)
        if refusal and way == TEXT:  # Whatever serves guidance at all serves this: a refusal is an error.
            claims.append(Claim(way, EVERY_LOOP, VERDICT, job, f"the plain text request is refused: {refusal}"))
        elif refusal or misfit:
            not_judged.append(f"{way}: {refusal or misfit}")
        else:
            claims += _claims(way, changed)
    if not job.is_light and job.requests is None:
        not_judged.append("the matrix of requests: it takes long at this size; --verify-requests matrix asks for it")
    not_judged += _left_out(job)
    if not claims:
        claims.append(Claim("nothing", EVERY_LOOP, VERDICT, job, "nothing can be judged: " + "; ".join(not_judged)))
    if job.loop_reference is None and callable(getattr(find_target(job.target), "combine", None)):
        from verify.fuzz.engine import property_names

        claims += [Claim(COMBINE, EVERY_LOOP, name, job) for name in property_names(job.device)]
    return Plan(tuple(claims), tuple(not_judged))


def ways(job: Job) -> Iterator[tuple[str, Job]]:
    """The ways in which a target is run, by name."""
    alone = replace(job, requests=ONE)
    image_guided = replace(alone, request=replace(job.request, **IMAGE_GUIDED))
    # What a merge depends on is judged for every kind of request that there is, unless another set is asked for.
    yield TEXT, replace(job, requests=MATRIX) if job.requests is None and job.is_light else job
    yield IMAGE, image_guided
    yield "fresh_interpreters", replace(alone, fresh_interpreters=True)
    yield "larger_world", replace(alone, larger_world=True)
    own = job.loop_reference is None and job.loops is None
    if own and "round_robin" in find_target(job.target).loops and job.world_size in (None, 2):
        yield "three_branches_on_two_ranks", replace(image_guided, loops=("round_robin",), world_size=2)


def _claims(way: str, job: Job) -> Iterator[Claim]:
    loops = [] if way in WHOLE else list(job.kinds())
    elsewhere = _OF_ALL_LOOPS if job.request_set != ONE else (*_OF_ALL_LOOPS, "requests_repeat")
    for loop in loops:
        yield from (Claim(way, loop, check, job) for check in CLAIMED if check not in elsewhere)
    if len(loops) > 1:
        yield Claim(way, EVERY_LOOP, "loops_agree", job)
    if loops:
        yield Claim(way, EVERY_LOOP, "not_vacuous", job)
    if job.request_set == MATRIX:
        yield Claim(way, EVERY_LOOP, "requests_matter", job)
    yield Claim(way, EVERY_LOOP, VERDICT, job)


def _refusal(job: Job) -> str:
    """Why the target cannot serve a job's request; empty if it can."""
    try:
        understood(find_target(job.target), job.request)
        replace(job, world_size=None).checked()
    except BadInput as error:
        return str(error)
    except Exception as error:
        return f"target {job.target} raised {in_words(error)}"
    return ""


def _misfit(given: Job, job: Job) -> str:
    """Why a job does not fit the number of ranks that was asked for; empty if it does."""
    branches = len(replace(job, world_size=None).resolved.branches)
    if given.world_size is None or given.world_size == branches or set(job.kinds().values()) == {"round_robin"}:
        return ""
    return f"--world-size {given.world_size}: this request has {branches} branches"


def _left_out(job: Job) -> list[str]:
    if job.loop_reference is not None:
        return []
    target = find_target(job.target)
    judged = {loop for _, changed in ways(job) for loop in (changed.loops or default_loops(target))}
    rest = [loop for loop in target.loops if loop != REFERENCE and loop not in judged]
    return [f"loops that target {job.target} has and does not name as default: {', '.join(rest)}"] if rest else []
