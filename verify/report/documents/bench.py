"""The documents of ``verify bench``: loop versions against each other, the cost of verifying, one forward pass."""

from __future__ import annotations

from typing import Any

from msgspec import field

from verify.report.documents.parts import Backend, Count, Device, Document, Failure, Part, WorldSize


class Spread(Part, frozen=True):
    """Seconds: median, least, greatest, and each of them."""

    p50: float
    min: float
    p100: float
    values: tuple[float, ...]


class Ratio(Part, frozen=True):
    """The median of pairwise ratios, with an interval that holds it at ``confidence``."""

    ratio: float
    low: float
    high: float
    pairs: Count
    confidence: float = 0.95

    @property
    def percent(self) -> tuple[float, float, float]:
        """Least, middle and greatest of what the ratio adds, in percent."""
        return 100 * (self.low - 1), 100 * (self.ratio - 1), 100 * (self.high - 1)


class TimedLoop(Part, frozen=True):
    """One loop: its seconds, the medians of its parts on each rank, and the least that it could take."""

    seconds: Spread
    parts: dict[str, tuple[float, ...]]
    broadcast_share_of_step: float
    step_s: float | None = None
    forwards_in_turn: Count | None = None
    limit_s: float | None = None
    over_limit: float | None = None


class Forward(Part, frozen=True):
    """A forward pass beside the rate at which the device multiplies large matrices."""

    forward_s: float
    ratio: float
    matmul_flops_per_s: float
    tokens: Count = 0
    flops: Count = 0
    forwards_s: tuple[float, ...] = ()
    matmul_rates: tuple[float, ...] = ()
    replay_s: float | None = None
    replays_s: tuple[float, ...] = ()


class Point(Part, frozen=True):
    """One size, network and number of ranks."""

    preset: str
    height: Count
    width: Count
    world_size: WorldSize
    backend: Backend
    device: Device
    cfg_interval: tuple[float, float]
    steps: Count
    guided_steps: Count
    alternations: Count
    notes: tuple[str, ...]
    loops: dict[str, TimedLoop]
    sentences: tuple[str, ...]
    dtype: str = ""
    devices: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    num_timesteps: Count | None = None
    alternations_asked: Count | None = None
    prepare: dict[str, float] = field(default_factory=dict)
    forward: Forward | None = None
    ratios: dict[str, Ratio] = field(default_factory=dict)


class Bench(Document, frozen=True, tag="bench"):
    """Loop versions against each other. ``incomplete`` says what is missing; it is empty once nothing is."""

    points: tuple[Point, ...]
    timings: dict[str, float]
    incomplete: str = ""
    time_limit_s: float | None = None
    failure: Failure | None = None


class Waits(Part, frozen=True):
    """On each rank, how often each call makes the host wait for the device inside a loop."""

    steps: Count
    bare: tuple[dict[str, Count], ...]
    recorded: tuple[dict[str, Count], ...]


class VerifiedLoop(Part, frozen=True):
    """One loop bare, recorded, and recorded with its traces gathered and judged."""

    bare_s: Spread
    recorded_s: Spread
    verified_s: Spread
    verified_over_bare: Ratio
    recorded_over_bare: Ratio | None = None
    bare_wall_s: Spread | None = None
    added_s: Spread | None = None
    syncs: Waits | None = None


class VerifiedPoint(Part, frozen=True):
    """One size, network and number of ranks."""

    preset: str
    height: Count
    notes: tuple[str, ...]
    loops: dict[str, VerifiedLoop]
    width: Count | None = None
    dtype: str = ""
    world_size: WorldSize | None = None
    backend: Backend = ""
    device: Device | None = None
    tokens: Count | None = None
    steps: Count | None = None
    guided_steps: Count | None = None
    alternations: Count = 0
    alternations_asked: Count | None = None


class Overhead(Document, frozen=True, tag="overhead"):
    """What verifying costs."""

    overhead: tuple[VerifiedPoint, ...]
    timings: dict[str, float]
    incomplete: str = ""
    time_limit_s: float | None = None
    failure: Failure | None = None


class Network(Part, frozen=True):
    """Milliseconds of one network's forward pass; the target's also over the built-in one's."""

    network: str
    preset: str
    dtype: str
    pixels: Count
    p50_ms: float
    min_ms: float
    p100_ms: float
    over_builtin: Ratio | None = None
    velocities_apart: float | None = None


class Forwards(Document, frozen=True, tag="forwards"):
    """One forward pass of a target's network, in turn with the built-in one's."""

    forwards: tuple[Network, ...]
    timings: dict[str, Any]
