"""One fuzz case: everything that decides one call of the combine, bit for bit, and small enough to read and send.

A case names bit patterns and not numbers. So every rank builds the same bytes, and JSON keeps subnormals, signed zeros
and NaN payloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from verify.errors import BadInput
from verify.oracle.formats import FORMATS, Format
from verify.request import RENORM_TYPES

BRANCHES = ("gen", "text", "img")
LAYOUTS = ("contiguous", "transposed", "sliced", "gathered", "columns", "strided", "expanded")
# A saved case lists its elements bit for bit up to this many. Above, it stores the recipe.
_MOST_LISTED = 512
_MOST_ELEMENTS = 1 << 24

Bits = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


class Float(Format):
    """A floating-point format, as bits and as PyTorch's dtype."""

    @property
    def torch(self) -> torch.dtype:
        """The dtype."""
        dtype = getattr(torch, self.name)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        """The bits of +inf: every exponent bit."""
        return self.sign - (1 << self.mantissa)

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.mantissa

    @property
    def unsigned(self) -> np.dtype[Any]:
        """The NumPy integers that hold its bits."""
        return np.dtype(f"uint{self.width}")

    def bits(self, value: float) -> int:
        """The bits of ``value`` rounded to this format."""
        rounded = torch.tensor(value, dtype=torch.float64).to(self.torch)
        integer = {16: torch.int16, 32: torch.int32, 64: torch.int64}[self.width]
        return int(rounded.view(integer).item()) & ((1 << self.width) - 1)


FLOATS = {f.name: Float(f.name, f.width, f.mantissa) for f in FORMATS.values()}


@dataclass(frozen=True)
class Values:
    """How the elements of one branch are made.

    Element ``i`` is a pattern's bits XOR (hash of ``i`` AND the pattern's mask). A mask of 0 repeats the bits, a mask
    of the mantissa draws from one binade, and a full mask draws any float. With ``near`` the result is XORed onto the
    named branch: patterns without a bit give an equal branch, patterns of low bits a nearly equal one.

    Attributes:
        patterns: pairs ``(bits, mask)``; the hash of ``i`` chooses the pair of element ``i``.
        seed: the seed of the hash.
        near: the name of another branch, or empty.
        edits: pairs ``(index, bits)`` that overwrite single elements; the index counts row by row, modulo the size.
        listed: all elements, row by row; the other fields are then unused.
    """

    patterns: tuple[tuple[int, int], ...] = ((0, 0),)
    seed: int = 0
    near: str = ""
    edits: tuple[tuple[int, int], ...] = ()
    listed: tuple[int, ...] | None = None

    def build(self, count: int, form: Float, others: Mapping[str, Bits]) -> Bits:
        """``count`` elements as integers of the format's width. ``others`` are the branches before this one."""
        if self.listed is not None:
            return np.array(self.listed, dtype=form.unsigned)
        index = np.arange(count, dtype=np.uint64)
        salt = 2 * (self.seed * len(BRANCHES) + len(others))  # Equal recipes give equal branches only by ``near``.
        patterns = np.array(self.patterns, dtype=np.uint64)[_hash(index, salt) % np.uint64(len(self.patterns))]
        bits = patterns[:, 0] ^ (_hash(index, salt + 1) & patterns[:, 1])
        if self.near:
            bits = bits ^ others[self.near].astype(np.uint64)
        for index_of_edit, value in self.edits:
            if count:
                bits[index_of_edit % count] = value
        built: Bits = bits.astype(form.unsigned)
        return built


@dataclass(frozen=True)
class Case:
    """One call of the combine.

    Attributes:
        dtype: the dtype of the velocities.
        tokens, channels: the shape of the velocities.
        branches: gen and text, and img unless guidance is by text alone.
        text_scale, img_scale, renorm_type, renorm_min: as ``combine_cfg`` takes them.
        layout: how the tensors lie in memory; one of ``LAYOUTS``.
        offset: how many elements lie before the data, in layouts that have any.
    """

    dtype: str
    tokens: int
    channels: int
    branches: tuple[Values, ...]
    text_scale: float = 4.0
    img_scale: float = 1.5
    renorm_type: str = "global"
    renorm_min: float = 0.0
    layout: str = "contiguous"
    offset: int = 0

    @property
    def form(self) -> Float:
        """The format of the velocities."""
        return FLOATS[self.dtype]

    @property
    def size(self) -> int:
        """Elements of a branch as the combine sees it."""
        return self.tokens * self.channels

    def bits(self) -> dict[str, Bits]:
        """The elements of every branch, ``(tokens, channels)``. An expanded branch repeats its first row."""
        rows = min(1, self.tokens) if self.layout == "expanded" else self.tokens
        flat: dict[str, Bits] = {}
        for name, values in zip(BRANCHES, self.branches, strict=False):
            flat[name] = values.build(rows * self.channels, self.form, flat)
        return {
            name: np.broadcast_to(bits.reshape(rows, self.channels), (self.tokens, self.channels))
            for name, bits in flat.items()
        }

    def explicit(self) -> Case:
        """The same case with every element listed, if there are few enough to read."""
        rows = min(1, self.tokens) if self.layout == "expanded" else self.tokens
        if rows * self.channels > _MOST_LISTED:
            return self
        listed = tuple(Values(listed=tuple(int(x) for x in b[:rows].flatten())) for b in self.bits().values())
        return replace(self, branches=listed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: bit patterns in hexadecimal, floats as Python's ``float.hex`` writes them."""

        def word(x: int) -> str:
            return f"0x{x:0{self.form.width // 4}x}"

        def values(v: Values) -> dict[str, Any]:
            if v.listed is not None:
                return {"bits": " ".join(f"{x:0{self.form.width // 4}x}" for x in v.listed)}
            return {
                "patterns": [[word(bits), word(mask)] for bits, mask in v.patterns],
                "seed": v.seed,
                "near": v.near,
                "edits": [[index, word(bits)] for index, bits in v.edits],
            }

        return {
            "dtype": self.dtype,
            "shape": [self.tokens, self.channels],
            "layout": self.layout,
            "offset": self.offset,
            "text_scale": self.text_scale.hex(),
            "img_scale": self.img_scale.hex(),
            "renorm_type": self.renorm_type,
            "renorm_min": self.renorm_min.hex(),
            "branches": {name: values(v) for name, v in zip(BRANCHES, self.branches, strict=False)},
        }

    @classmethod
    def from_dict(cls, data: Any) -> Case:
        """The case that :meth:`to_dict` wrote.

        Raises:
            BadInput: it is not such a case.
        """
        try:
            form = FLOATS[data["dtype"]]
            tokens, channels = data["shape"]
            case = cls(
                dtype=form.name,
                tokens=tokens,
                channels=channels,
                branches=tuple(_values(data["branches"][name], form) for name in BRANCHES if name in data["branches"]),
                text_scale=float.fromhex(data["text_scale"]),
                img_scale=float.fromhex(data["img_scale"]),
                renorm_type=data["renorm_type"],
                renorm_min=float.fromhex(data["renorm_min"]),
                layout=data["layout"],
                offset=data["offset"],
            )
            case._check()
            return case
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f"{type(error).__name__}: {error}"
            raise BadInput.of("the case", data, "one that verify fuzz saved", f"it cannot be read ({why})") from None

    def _check(self) -> None:
        if not (isinstance(self.tokens, int) and isinstance(self.channels, int) and isinstance(self.offset, int)):
            raise ValueError("shape and offset are integers")
        if self.tokens < 0 or self.channels < 1 or self.size > _MOST_ELEMENTS or not 0 <= self.offset <= 4096:
            raise ValueError(f"shape {self.tokens} x {self.channels} or offset {self.offset} is out of range")
        if self.renorm_type not in RENORM_TYPES or self.layout not in LAYOUTS or len(self.branches) < 2:
            raise ValueError("unknown renorm_type or layout, or a branch is missing")
        if not 0.0 <= self.renorm_min <= 1.0:
            raise ValueError("renorm_min is outside [0, 1]")
        rows = min(1, self.tokens) if self.layout == "expanded" else self.tokens
        for number, values in enumerate(self.branches):
            if values.listed is not None and len(values.listed) != rows * self.channels:
                raise ValueError(f"{len(values.listed)} elements are listed for {rows} x {self.channels}")
            if values.near and values.near not in BRANCHES[:number]:
                raise ValueError(f"a branch cannot be near {values.near!r}")
            if not values.patterns:
                raise ValueError("a branch has no pattern")

    def __str__(self) -> str:
        img = f", img {self.img_scale:g}" if len(self.branches) > 2 else ""
        return (
            f"{self.dtype} {self.tokens} x {self.channels} {self.layout}"
            + (f" at offset {self.offset}" if self.offset else "")
            + f", text {self.text_scale:g}{img}, {self.renorm_type}, renorm_min {self.renorm_min:g}"
        )


def _values(data: Any, form: Float) -> Values:
    def word(text: str) -> int:
        value = int(text, 16)
        if not 0 <= value < 1 << form.width:
            raise ValueError(f"{text} is no {form.name}")
        return value

    if "bits" in data:
        return Values(listed=tuple(word(x) for x in data["bits"].split()))
    return Values(
        patterns=tuple((word(bits), word(mask)) for bits, mask in data["patterns"]),
        seed=int(data["seed"]),
        near=data["near"],
        edits=tuple((int(index), word(bits)) for index, bits in data["edits"]),
    )


def _hash(index: Bits, seed: int) -> Any:
    """SplitMix64's finaliser (https://prng.di.unimi.it/splitmix64.c) over index and seed."""
    x = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 0xD1B54A32D192ED03 & (1 << 64) - 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
