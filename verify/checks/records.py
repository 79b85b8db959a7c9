"""What each check is called, claims and leaves unsaid: the one list that every reader of these words uses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckRecord:
    """One check in words.

    Attributes:
        name: as findings, documents and pages call it.
        claim: what holds when it passes.
        not_said: what a pass does not say.
        usual_causes: what a failure usually means; kept to what has been seen, see ``verify/faults/``.
        usual_causes_at_start: the same where the difference is there before the first step; empty where there is no
            such case.
        compares_x_t: whether it compares ``x_t``, so that a failure can be located within its step.
        by_step: whether it sees only the steps whose ``x_t`` are kept, so that a window of steps is judged in parts.
    """

    name: str
    claim: str
    not_said: str
    usual_causes: str
    usual_causes_at_start: str = ""
    compares_x_t: bool = False
    by_step: bool = False


_RECORDS = (
    CheckRecord(
        "environments_agree",
        "nothing that can change bits differs between ranks, before, during and after the loop",
        "anything about another machine",
        "ranks run on different hardware, versions, sources, settings or variables; settle this before looking at bits",
    ),
    CheckRecord(
        "ranks_agree",
        "every rank holds the same bytes of x_t after each step",
        "that the bytes are right",
        "one rank combined or stepped with other bits: another kernel, dtype, input or order of branches",
        "the initial noise is not shared: broadcast x_0 from rank 0 before the first step",
        compares_x_t=True,
        by_step=True,
    ),
    CheckRecord(
        "matches_reference",
        "they are the bytes of one process that evaluates every branch alone",
        "that the reference is right",
        "branch order, scales, schedule or combine, on every rank alike; or the weights, cache or kernels of one rank",
        "noise from another seed, generator, dtype or rank than the request's",
        compares_x_t=True,
        by_step=True,
    ),
    CheckRecord(
        "rounding_explains",
        "with --reference rounding: no step lies further from the reference's than rounding puts it",
        "that the bytes are right, or that no fault is hidden below what rounding does; see verify help rounding",
        "an operator that computes something else; or one that rounds more than once where the reference rounds once",
        "noise from another seed, generator, dtype or rank than the request's",
        compares_x_t=True,
        by_step=True,
    ),
    CheckRecord(
        "loops_agree",
        "all versions of the loop hold the same bytes",
        "anything about versions not run",
        "one version of the loop departs from the algorithm of the other",
        compares_x_t=True,
        by_step=True,
    ),
    CheckRecord(
        "replicas_agree",
        "every replica, and so every host, holds the same bytes",
        "anything about hosts not run",
        "one replica holds other weights, contexts or settings, or its host computes otherwise",
        by_step=True,
    ),
    CheckRecord(
        "requests_repeat",
        "a request that is judged again after another one gives the same bytes",
        "anything about requests not judged",
        "state of an earlier request survives: a cache that is not reset, a buffer of the first request's size, or "
        "memory that nothing wrote",
    ),
    CheckRecord(
        "requests_matter",
        "each parameter of a request changes bytes of the reference in some request of the matrix",
        "that every value of a parameter would show a fault",
        "the target does not read the parameter, or no request judged lets it act",
    ),
    CheckRecord(
        "schedule",
        "the loop takes the steps of the target's schedule, in size and number, and asks the network for what each "
        "calls for",
        "that another schedule is worse",
        "the terminal 0 is counted as a step of its own (vllm-omni issues 4470, 4509, 6359), or the interval's bound "
        "is compared in another precision",
    ),
    CheckRecord(
        "collectives",
        "each step makes the exchanges that the schedule calls for, alike on every rank, and no others",
        "that they are fast, or that no file or shared memory carries data between ranks",
        "a collective is skipped, added, made beside the group, or called with another tensor; on real GPUs this ends "
        "in a hang",
    ),
    CheckRecord(
        "sent_as_computed",
        "what enters a gather is what the network returned, byte for byte; what enters a sum is that times one number",
        "that the network is right",
        "a velocity is scaled, cast, quantised or reordered between the network and the gather, or has another weight",
    ),
    CheckRecord(
        "parallelism_engaged",
        "each rank evaluates its own branch at guided steps, and only that",
        "that it is worth it",
        "the parallel setting is ignored, a rank takes its branch from the wrong group, or a step cache answers in "
        "place of the network",
    ),
    CheckRecord(
        "not_vacuous",
        "the run can show a fault: branches differ, guidance and every step change x_t, noises differ between ranks, "
        "and the caches shown are read",
        "that every fault would show",
        "weights that are zero, a branch that is conditioned as another, a cache that is shown as a copy",
        by_step=True,
    ),
    CheckRecord(
        "cache_frozen",
        "contexts are equal on all ranks and nothing writes to them while denoising",
        "that the prompt was encoded well",
        "a cache is updated or shared while denoising, or a rank prefilled it differently",
    ),
    CheckRecord(
        "state_frozen",
        "weights, buffers, contexts and functions are the same before and after the loop",
        "anything about state that the target does not show; a hook that is left fails only by what it changes",
        "a loop writes to weights or contexts, or leaves a patched function behind",
    ),
    CheckRecord(
        "observed",
        "the x_t shown is the one that the loop goes on with",
        "that it is right",
        "observe is given a copy from another moment than the x_t that the loop goes on with",
    ),
    CheckRecord(
        "finite",
        "no NaN and no infinity in x_t",
        "that the image is good",
        "an overflow or a division by zero; equal NaNs on every rank are still no image",
        by_step=True,
    ),
    CheckRecord(
        "windows_agree",
        "with --window, every pass over the loop ended with the same bytes",
        "that the bytes are right",
        "the loop or its target keeps something from one run to the next; judge it without --window",
    ),
)

# By name, in the order in which a reader should look at them.
CHECKS = {record.name: record for record in _RECORDS}
