"""A job: everything that decides a run, checked before any process starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verify.bagel.checkpoint import survey
from verify.bagel.conditioning import read_conditioning
from verify.bagel.config import preset
from verify.bagel.options import BagelOptions
from verify.bagel.picture import require_decoder
from verify.errors import BadInput
from verify.expected import ANY, LOOP_KINDS, ONE_BRANCH_A_RANK, Exchanges, kind_of
from verify.layout import Layout
from verify.options.option import reproducing, values_of
from verify.options.table import COMMANDS
from verify.request import DenoiseRequest, ResolvedRequest
from verify.runner.requests import ONE, REQUEST_SETS, SEQUENCE, Asked, requests_of
from verify.targets.finding import find_target, options_of
from verify.targets.protocol import REFERENCE, STEP_SIZES, ModelOptions, default_loops, layout_of, understood
from verify.tasks.stage import Plan
from verify.trace.window import Window, windows_of

DTYPES = ("bfloat16", "float16", "float32", "float64")
DEFAULT_TIMEOUT = 300.0
FALSE_ALARM, DRAWS = 1e-6, 16
# A sequence denoises this often three times over; more takes longer than a default may.
_LIGHT_TIMESTEPS = 100
# The reference as one loop from the noise on, or each step of it from the x_t recorded before it.
# For loops that cannot equal it in bits: each step again, and held to what rounding makes of it.
FULL, INDUCTIVE, ROUNDING = REFERENCE_MODES = ("full", "inductive", "rounding")


@dataclass(frozen=True)
class Job:
    """Everything that decides a run. Checked by :meth:`checked` before any process starts.

    Attributes:
        request: what to denoise.
        options: with which network.
        loops: which of the target's loops to judge; None for those that the target names.
        loop_reference: a loop of the user's own to judge instead.
        expect: what the user's own loop is held to: ``broadcast``, ``local``, ``round_robin`` or ``any``.
        target: whose loops.
        world_size: ranks; None for one a branch.
        device: ``cpu`` or ``cuda``.
        backend: ``gloo``, ``nccl`` or None for what fits.
        timeout: seconds for all loops together.
        reference: ``full``: the reference is one loop from the noise on; ``inductive``: each step of it starts from the
            ``x_t`` recorded before it, so that several wrong steps are all told; ``rounding``: as inductive, and a step
            may differ by what rounding explains.
        false_alarm: with ``rounding``, the probability of "not explained" where everything is rounding, over all loops.
        draws: with ``rounding``, how often each step is repeated under randomised rounding.
        image: where the picture of rank 0's final latent is written, a PNG file; None for no picture.
        window: how many steps' ``x_t`` are kept at a time; None for all. See :attr:`windows`.
        larger_world: whether the CFG group is a part of a larger world, as where tensor parallelism is used beside it.
        fresh_interpreters: whether each rank is a Python started anew, with a hash seed of its own, and not a fork.
        requests: which set of requests is judged, of which ``request`` is the first; None for :attr:`request_set`.
        fills_memory: whether memory that nothing has written yet holds NaN, where it is taken for a tensor.
    """

    request: DenoiseRequest = field(default_factory=DenoiseRequest)
    options: ModelOptions = field(default_factory=ModelOptions)
    loops: tuple[str, ...] | None = None
    loop_reference: str | None = None
    expect: str = "local"
    target: str = "builtin"
    world_size: int | None = None
    device: str = "cpu"
    backend: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    reference: str = FULL
    window: int | None = None
    image: str | None = None
    larger_world: bool = False
    fresh_interpreters: bool = False
    requests: str | None = None
    fills_memory: bool = False
    false_alarm: float = FALSE_ALARM
    draws: int = DRAWS

    @property
    def request_set(self) -> str:
        """``one``, ``sequence`` or ``matrix``: what is given, else a sequence where it costs seconds."""
        if self.requests is not None:
            return self.requests
        return SEQUENCE if self.is_light and self.request.num_timesteps <= _LIGHT_TIMESTEPS else ONE

    @property
    def told(self) -> dict[str, Any]:
        """What documents say was asked for: of the request what the target reads, and the target's own options."""
        target = find_target(self.target)
        ignored = getattr(target, "ignores", ())
        asked = self.request.to_dict() | self.options.to_dict()
        return {name: value for name, value in asked.items() if name not in ignored} | options_of(self.target)

    @property
    def is_light(self) -> bool:
        """Whether the network takes no time to build and to run."""
        return self.options.preset == "tiny" and self.options.checkpoint is None

    @property
    def asked(self) -> tuple[Asked, ...]:
        """The requests to be judged, in order."""
        image = self._image_guided
        asked = requests_of(
            self.request_set,
            self.request,
            varies_dtype=self.is_light,
            image=image,
            # Three ranks may be more than there are GPUs.
            any_branches=image is None and self.world_size is None and self.device == "cpu",
        )
        if self.target == "builtin":
            return asked
        # Engines keep latents in float32: a velocity in float64 would change their dtype within the loop.
        return tuple(replace(each, dtype="float32") if each.dtype == "float64" else each for each in asked)

    @property
    def _image_guided(self) -> bool | None:
        """Whether requests of the set must, or must not, guide by the image; None where both are served."""
        if self.world_size is not None and any(kind in ONE_BRANCH_A_RANK for kind in self.kinds().values()):
            return self.request.cfg_img_scale > 1.0
        try:
            replace(self, request=replace(self.request, cfg_text_scale=4.0, cfg_img_scale=1.5)).resolved  # noqa: B018
        except BadInput:
            return False
        return None

    @property
    def stepwise(self) -> bool:
        """Whether each step of the reference starts from the ``x_t`` recorded before it."""
        return self.reference != FULL

    def asking(self, asked: Asked) -> Job:
        """The job that judges one request of the set."""
        dtype = self.options.dtype if asked.dtype is None else asked.dtype
        # Autocast is for half-precision networks.
        options = replace(self.options, dtype=dtype, autocast=self.options.autocast and "16" in dtype)
        # The picture is the first one's.
        image = self.image if asked == self.asked[0] else None
        fills = self.fills_memory or asked.again
        # So that the whole set keeps to the probability of a false alarm.
        alarm = self.false_alarm / len(self.asked)
        return replace(
            self, request=asked.request, options=options, requests=ONE, fills_memory=fills, image=image,
            false_alarm=alarm if self.reference == ROUNDING else self.false_alarm,
        )  # fmt: skip

    @property
    def ranks(self) -> int:
        """The world size."""
        if self.world_size is not None:
            return self.world_size
        wanted: int | None = getattr(find_target(self.target), "ranks", None)
        return len(self.resolved.branches) if wanted is None else wanted

    @property
    def layout(self) -> Layout | None:
        """How the target lays out the ranks; None where it does not say."""
        return layout_of(find_target(self.target), self.ranks)

    @property
    def judged(self) -> tuple[str, ...]:
        """The target's loops to be judged; none where the user hands over a loop."""
        if self.loop_reference is not None:
            return ()
        return default_loops(find_target(self.target)) if self.loops is None else self.loops

    @property
    def resolved(self) -> ResolvedRequest:
        """The request with the schedule and branches that the target makes of it: what its loops are held to."""
        return understood(find_target(self.target), self.request)

    @property
    def windows(self) -> list[Window | None]:
        """The windows of steps that are kept, a pass over every loop for each; one that keeps all without ``window``.

        A window's ``x_t`` are judged byte for byte and let go before the next pass. It costs time: a pass for each
        window. The two cheaper ways were not taken. A digest of each step on the device, and full bytes only where
        digests differ, would let a pass rest on a hash. Copying finished windows to the host while the loop goes on
        would put traffic into the loop whose timing is measured, and hold the whole trace there. That all passes
        computed the same is checked (``windows_agree``).
        """
        if self.window is None or self.window >= self.resolved.schedule.steps:
            return [None]
        return [*windows_of(self.resolved.schedule.steps, self.window)]

    def checked(self) -> Job:
        """This job, if it can be run.

        Raises:
            BadInput: it cannot, whatever the machine.
        """
        bagel = self.options.bagel or BagelOptions()
        if self.options.checkpoint is None:
            config = preset(self.options.preset).config
        else:
            # Headers only: a bad folder is refused before any rank starts.
            config = survey(Path(self.options.checkpoint), bagel.weights).config
        served = getattr(find_target(self.target), "bagel_options", ())
        for name in bagel.given():
            if name not in served:
                flag = f"--{name.replace('_', '-')}"
                raise BadInput.of(
                    flag, bagel.given()[name], f"target builtin, since {self.target} does not read it", "leave it out"
                )
        if self.image is not None and not hasattr(find_target(self.target), "picture"):
            raise BadInput.of("--image", self.image, f"a target that draws, not {self.target}", "leave it out")
        if self.image is not None and self.options.checkpoint is not None:
            require_decoder(Path(self.options.checkpoint), config)
        read_conditioning(bagel, self.options.checkpoint, config)
        if self.options.step_sizes not in STEP_SIZES:
            raise BadInput.of("step sizes", self.options.step_sizes, f"one of {', '.join(STEP_SIZES)}", "choose one")
        if self.options.dtype not in DTYPES:
            raise BadInput.of("dtype", self.options.dtype, f"one of {', '.join(DTYPES)}", "choose one")
        if not 0 < self.timeout <= 86400:
            raise BadInput.of("timeout", self.timeout, "seconds above 0 and up to 86400", "choose one in that range")
        if self.requests not in (None, *REQUEST_SETS):
            raise BadInput.of("requests", self.requests, f"one of {', '.join(REQUEST_SETS)}", "choose one")
        if self.reference not in REFERENCE_MODES:
            raise BadInput.of("reference", self.reference, f"one of {', '.join(REFERENCE_MODES)}", "choose one")
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            raise BadInput.of("window", self.window, "an integer from 1", "give the steps to keep at a time")
        if not 0 < self.false_alarm <= 0.5:
            raise BadInput.of("false alarm", self.false_alarm, "a probability above 0 and up to 0.5", "choose one")
        if not isinstance(self.draws, int) or not 8 <= self.draws <= 1000:
            raise BadInput.of("draws", self.draws, "an integer from 8 to 1000", "choose one in that range")
        if self.window is not None and self.stepwise:
            raise BadInput(
                f"--window and --reference {self.reference} were both given, expected one of them, since each step is "
                "computed anew from the x_t before it, and a window does not hold the first; leave one out"
            )
        if self.expect not in (*LOOP_KINDS[1:], ANY):
            raise BadInput.of("expect", self.expect, f"one of {', '.join((*LOOP_KINDS[1:], ANY))}", "choose one")
        known = [name for name in find_target(self.target).loops if name != REFERENCE]
        for place, name in enumerate(self.judged):
            if name not in known:
                raise BadInput.of("loops", name, f"some of {', '.join(known)}", "separate names by commas")
            if name in self.judged[:place]:
                raise BadInput.of("loops", ",".join(self.judged), "each loop once", f"name {name} once")
        if not self.judged and self.loop_reference is None:
            raise BadInput.of("loops", "", f"some of {', '.join(known)}", "name at least one")
        for kind in self.kinds().values():
            _require_fitting_world(kind, self.ranks, self.layout, self.resolved.branches)
        return self

    def kinds(self) -> dict[str, str]:
        """The version that each loop to be judged is held to."""
        return {name: kind_of(expects) for name, expects in self.expectations().items()}

    def expectations(self) -> dict[str, str | Exchanges]:
        """What each loop to be judged is held to; a loop of the user's own, to what the target declares of its kind."""
        expects = find_target(self.target).expects
        if self.loop_reference is None:
            return {name: expects[name] for name in self.judged}
        declared = (each for each in expects.values() if isinstance(each, Exchanges) and each.kind == self.expect)
        return {self._plan("").loop_name: next(declared, self.expect)}

    @property
    def command(self) -> str:
        """The command line that reproduces this job."""
        return reproducing("run", COMMANDS["run"], values_of(COMMANDS["run"], self))

    def _plan(self, loop: str) -> Plan:
        reference = None if loop == REFERENCE else self.loop_reference
        return Plan(self.request, self.options, self.target, loop, reference, fills_memory=self.fills_memory)

    def plans(self) -> list[Plan]:
        """The reference, then each loop to be judged."""
        return [self._plan(REFERENCE), *self.judged_plans()]

    def judged_plans(self) -> list[Plan]:
        """Each loop to be judged."""
        return [self._plan(loop) for loop in ([""] if self.loop_reference is not None else self.judged)]


def _require_fitting_world(kind: str, world_size: int, layout: Layout | None, branches: Sequence[str]) -> None:
    """``broadcast`` and ``local`` give each branch group one branch, so the numbers must match."""
    if layout is not None and kind in ONE_BRANCH_A_RANK and layout.branch_groups != len(branches):
        raise BadInput.of(
            "branch groups in the layout of the target",
            layout.branch_groups,
            f"{len(branches)} for a {kind} loop, because each evaluates one of the branches {', '.join(branches)}",
            "change --world-size or the layout",
        )
    if layout is None and kind in ONE_BRANCH_A_RANK and world_size != len(branches):
        raise BadInput.of(
            "world size",
            world_size,
            f"{len(branches)} for a {kind} loop, because each rank evaluates one of the branches {', '.join(branches)}",
            "use --loops round_robin for any world size, or change the CFG scales",
        )
