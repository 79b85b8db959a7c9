"""Which steps are guided, when a step falls on a bound of the interval.

A guided step gathers; an unguided one does not. So two ranks that disagree about one step wait for each other for ever.
Two rules are in use. Bagel and this package compare a float32 tensor with the bound, and PyTorch rounds the bound to
float32. vllm-omni 0.30 compares host floats in float64. The rules differ where a bound is no float32 number and a step
is its nearest one. Each rule is safe as long as every rank follows the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from verify.errors import BadInput
from verify.ranks.rank import Rank
from verify.request import DenoiseRequest
from verify.schedule import Schedule
from verify.verdict import Compared, Divergence, Finding, Verdict

GUIDED_STEPS_AGREE = "guided_steps_agree"
TENSOR_RULE, HOST_RULE = "tensor", "host"
HOST_ON_ONE_RANK = "host rule on one rank"


@dataclass(frozen=True)
class Bounds:
    """The fields of a request that decide which steps are guided."""

    num_timesteps: int
    timestep_shift: float
    lo: float
    hi: float

    def request(self) -> DenoiseRequest:
        """A request with these fields, which it validates."""
        return DenoiseRequest(
            num_timesteps=self.num_timesteps, timestep_shift=self.timestep_shift, cfg_interval=(self.lo, self.hi)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Bounds:
        """What :meth:`to_dict` wrote.

        Raises:
            BadInput: it is not that, or no such request can be made.
        """
        try:
            bounds = cls(**data)
        except TypeError as error:
            raise BadInput.of("the case", data, "one that verify fuzz saved", f"it cannot be read ({error})") from None
        bounds.request()
        return bounds

    def __str__(self) -> str:
        return f"num_timesteps {self.num_timesteps}, shift {self.timestep_shift!r}, interval ({self.lo!r}, {self.hi!r}]"


def guided_by_host(bounds: Bounds, points: Sequence[float]) -> tuple[bool, ...]:
    """Host floats, compared in float64."""
    return tuple(bounds.lo < t <= bounds.hi for t in points)


def guided_by_tensor(bounds: Bounds, points: torch.Tensor) -> tuple[bool, ...]:
    """A float32 tensor on its own device, against bounds that PyTorch rounds to float32."""
    inside = (points > bounds.lo) & (points <= bounds.hi)
    return tuple(bool(x) for x in inside.tolist())


def decisions(bounds: Bounds, device: torch.device) -> dict[str, tuple[bool, ...]]:
    """The guided steps under each rule: for the request's own schedule, and on a GPU also for points computed there."""
    schedule = Schedule.of(bounds.num_timesteps, bounds.timestep_shift, (bounds.lo, bounds.hi))
    made = {TENSOR_RULE: schedule.guided, HOST_RULE: guided_by_host(bounds, schedule.timesteps)}
    if device.type == "cuda":
        points = torch.linspace(1, 0, bounds.num_timesteps, dtype=torch.float32, device=device)
        shift = bounds.timestep_shift
        points = (shift * points / (1 + (shift - 1) * points))[:-1]
        made["tensor, points on the GPU"] = guided_by_tensor(bounds, points)
        made["host, points on the GPU"] = guided_by_host(bounds, points.tolist())
    return made


def decide(rank: Rank, batch: Sequence[Bounds], variant: str) -> list[dict[str, tuple[bool, ...]]]:
    """Runs on a rank: :func:`decisions` for each schedule. With ``HOST_ON_ONE_RANK`` rank 1 follows the host rule."""
    made = [decisions(bounds, rank.device) for bounds in batch]
    if variant == HOST_ON_ONE_RANK and rank.rank == 1:
        made = [{**each, TENSOR_RULE: each[HOST_RULE]} for each in made]
    return made


def disagreement(guided_by_rank: Sequence[Sequence[bool]]) -> tuple[int, int] | None:
    """The first step about which a rank disagrees with rank 0, and that rank."""
    for step, decided in enumerate(zip(*guided_by_rank, strict=True)):
        for rank, guided in enumerate(decided):
            if guided != decided[0]:
                return step, rank
    return None


def judge_boundary(
    batch: Sequence[Bounds], by_rank: Sequence[Sequence[dict[str, tuple[bool, ...]]]], loop: str = "schedule"
) -> Finding:
    """Judges whether all ranks guide the same steps under each rule, and says where mixed rules would deadlock.

    Args:
        batch: the schedules.
        by_rank: for each rank and schedule, what :func:`decide` returned there.
        loop: what the finding is about, for reports.
    """
    steps = sum(bounds.num_timesteps - 1 for bounds in batch)
    compared = Compared(len(batch), steps * len(by_rank) if len(by_rank) > 1 else 0)
    mixed: dict[tuple[str, str], list[tuple[Bounds, int]]] = {}
    for number, bounds in enumerate(batch):
        here = [decided[number] for decided in by_rank]
        for rule in here[0]:
            apart = disagreement([decided[rule] for decided in here])
            if apart is not None:
                step, rank = apart
                who = [r for r in (0, rank) if here[r][rule][step]]
                return Finding(
                    GUIDED_STEPS_AGREE,
                    loop,
                    Verdict.FAIL,
                    f"only rank {who[0]} guides step {step} under the {rule} rule: it waits in all_gather for ever",
                    compared,
                    Divergence(step, (0, rank), "guided"),
                    details=(str(bounds),),
                    data={"case": bounds.to_dict()},
                )
        rules = list(here[0])
        for rule in rules[1:]:
            apart = disagreement([here[0][rules[0]], here[0][rule]])
            if apart is not None:
                mixed.setdefault((rules[0], rule), []).append((bounds, apart[0]))
    verdict = Verdict.PASS if compared.elements else Verdict.UNKNOWN
    details = [
        f"if one rank chose its guided steps by the rule {pair[0]} and another by {pair[1]}, they would deadlock at "
        f"{len(places)} of {len(batch)} schedules, as at {places[0][0]}, step {places[0][1]}"
        for pair, places in mixed.items()
    ]
    data = {
        " and ".join(pair): [{**bounds.to_dict(), "step": step} for bounds, step in places[:20]]
        for pair, places in mixed.items()
    }
    summary = f"every rank guides the same steps under each rule, of {len(batch):,} schedules with steps on a bound"
    if not compared.elements:
        summary = "there is one rank, or no schedule: nothing was compared"
    return Finding(GUIDED_STEPS_AGREE, loop, verdict, summary, compared, details=tuple(details), data={"mixed": data})
