"""What could differ between two ranks, and how to bring each about. Runs inside a rank.

A condition takes a computation and yields ``(setting, result, baseline)``: what the computation gives under the
condition, and what without. It undoes what it sets. It raises :class:`Inapplicable` where the machine lacks what it
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from verify.bagel.layers import ATTENTION_KERNELS
from verify.fuzz.layouts import place

Result = tuple[str, Tensor, Tensor]


class Inapplicable(Exception):
    """The machine lacks what a condition needs."""


@dataclass(frozen=True)
class Computation:
    """Something whose bits are measured.

    Attributes:
        subject: ``combine`` or ``forward``.
        function: from the inputs to the result.
        inputs: tensors ``(tokens, channels)``, fresh and contiguous.
        device: where they lie.
        elsewhere: the same computation on another device; for a large model, a small one stands in on both.
        with_subnormals: inputs of the same kind, most of them subnormal.
        compiled: a context in which the function's network is compiled in a mode, or None to compile the function.
    """

    subject: str
    function: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    device: torch.device
    elsewhere: Callable[[torch.device], Computation]
    with_subnormals: Sequence[Tensor]
    compiled: Callable[[str], Any] | None = None

    def run(self, inputs: Sequence[Tensor] | None = None) -> Tensor:
        """The result, copied, so that nothing later can change it."""
        return self.function(*(self.inputs if inputs is None else inputs)).clone()


def threads(c: Computation) -> Iterator[Result]:
    """CPU threads, against one."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = c.run()
        for count in (2, 3, 4, 8):
            torch.set_num_threads(count)
            yield f"{count} threads", c.run(), alone
    finally:
        torch.set_num_threads(before)


def alignment(c: Computation) -> Iterator[Result]:
    """The first element lies some elements past an aligned address."""
    baseline = c.run()
    for offset in (1, 2, 3, 4, 8, 16):
        yield f"offset {offset}", c.run(place(c.inputs, "sliced", offset).branches), baseline


def strides(c: Computation) -> Iterator[Result]:
    """Other layouts of the same elements."""
    baseline = c.run()
    for layout in ("transposed", "columns", "strided"):
        yield layout, c.run(place(c.inputs, layout, 4).branches), baseline


def gathered_slice(c: Computation) -> Iterator[Result]:
    """Slices of one gathered buffer, as all_gather_into_tensor leaves them, against tensors of their own."""
    buffer = torch.cat([x.reshape(-1) for x in (*c.inputs, c.inputs[0])])
    size = c.inputs[0].numel()
    slices = [buffer[k * size : (k + 1) * size].view(x.shape) for k, x in enumerate(c.inputs)]
    last = buffer[-size:].view(c.inputs[0].shape)
    baseline = c.run()
    yield "slices in order", c.run(slices), baseline
    yield "first input in the last slice", c.run([last, *slices[1:]]), baseline


def _compile(mode: str) -> Callable[[Computation], Iterator[Result]]:
    def compiled(c: Computation) -> Iterator[Result]:
        import torch._dynamo
        import torch._inductor.config

        # In this process: compile workers would outlive a rank that is killed.
        torch._inductor.config.compile_threads = 1
        baseline = c.run()
        try:
            if c.compiled is not None:
                with c.compiled(mode):
                    yield mode, c.run(), baseline
                return
            function = torch.compile(c.function, mode=mode, dynamic=False, fullgraph=True)
            yield mode, function(*c.inputs).clone(), baseline
        finally:
            torch._dynamo.reset()

    compiled.__doc__ = f"torch.compile in mode {mode}, against eager."
    return compiled


def cuda_graph(c: Computation) -> Iterator[Result]:
    """A CUDA graph's replay, against eager."""
    _needs_gpu(c)
    baseline = c.run()
    stream = torch.cuda.Stream(c.device)
    stream.wait_stream(torch.cuda.current_stream(c.device))
    with torch.cuda.stream(stream):  # Libraries set themselves up before capture.
        c.run()
    torch.cuda.current_stream(c.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = c.function(*c.inputs)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize(c.device)
    yield "replay", out.clone(), baseline


def deterministic_algorithms(c: Computation) -> Iterator[Result]:
    """``use_deterministic_algorithms`` off, against on."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        baseline = c.run()
        torch.use_deterministic_algorithms(False)
        yield "off", c.run(), baseline
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def tf32(c: Computation) -> Iterator[Result]:
    """TF32 or less for float32 products, against full float32."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        baseline = c.run()
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            yield f"float32_matmul_precision {precision}", c.run(), baseline
    finally:
        torch.set_float32_matmul_precision(before)


def reduced_precision(c: Computation) -> Iterator[Result]:
    """Split sums of half-precision products in half precision forbidden, against allowed (PyTorch's default)."""
    matmul = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(matmul, name) for name in names]
    try:
        for name in names:
            setattr(matmul, name, True)
        baseline = c.run()
        for name in names:
            setattr(matmul, name, False)
        yield "reductions in float32", c.run(), baseline
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)


def denormal_flush(c: Computation) -> Iterator[Result]:
    """``set_flush_denormal(True)``, on inputs most of which are subnormal. It concerns the CPU alone."""
    baseline = c.run(c.with_subnormals)
    if not torch.set_flush_denormal(True):
        raise Inapplicable("this CPU cannot flush denormals")
    try:
        yield "on", c.run(c.with_subnormals), baseline
    finally:
        torch.set_flush_denormal(False)


def cpu_against_gpu(c: Computation) -> Iterator[Result]:
    """The same computation on the CPU, against the GPU."""
    _needs_gpu(c)
    gpu = c.elsewhere(c.device).run()
    yield "cpu", c.elsewhere(torch.device("cpu")).run(), gpu.cpu()


def another_gpu(c: Computation) -> Iterator[Result]:
    """The same computation on each other GPU of this machine."""
    _needs_gpu(c)
    if torch.cuda.device_count() < 2:
        raise Inapplicable("needs two GPUs, this machine has one")
    here = c.elsewhere(c.device).run().cpu()
    for index in range(torch.cuda.device_count()):
        if index != c.device.index:
            name = torch.cuda.get_device_properties(index).name
            yield f"cuda:{index} ({name})", c.elsewhere(torch.device("cuda", index)).run().cpu(), here


def inside_autocast(c: Computation) -> Iterator[Result]:
    """Under autocast, against without."""
    baseline = c.run()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(c.device.type, dtype=dtype):
            yield f"to {str(dtype).removeprefix('torch.')}", c.run(), baseline


def dtype_of_gather(c: Computation) -> Iterator[Result]:
    """Inputs that were cast to another dtype to be sent, and back."""
    baseline = c.run()
    for dtype in (torch.bfloat16, torch.float32):
        sent = [x.to(dtype).to(x.dtype) for x in c.inputs]
        yield f"sent as {str(dtype).removeprefix('torch.')}", c.run(sent), baseline


def attention_kernel(c: Computation) -> Iterator[Result]:
    """Each attention kernel that runs here, against the one that is chosen."""
    if c.subject == "combine":
        raise Inapplicable("the combine has no attention")
    baseline = c.run()
    kernels = ATTENTION_KERNELS
    before = list(kernels)
    failures = []
    try:
        for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                       SDPBackend.MATH):  # fmt: skip
            kernels[:] = [kernel]
            try:
                result = c.run()
            except RuntimeError as error:
                failures.append(str(error))
                continue
            yield kernel.name.lower().removesuffix("_attention"), result, baseline
    finally:
        kernels[:] = before


def onednn(c: Computation) -> Iterator[Result]:
    """Without oneDNN's CPU kernels, against with them."""
    baseline = c.run()
    with torch.backends.mkldnn.flags(enabled=False):
        yield "off", c.run(), baseline


def _needs_gpu(c: Computation) -> None:
    if c.device.type != "cuda":
        raise Inapplicable("needs a GPU")


Condition = Callable[[Computation], Iterator[Result]]
# Compilation last: it takes longest and is likeliest to fail.
CONDITIONS: dict[str, Condition] = {
    "threads": threads,
    "alignment": alignment,
    "strides": strides,
    "gathered slice": gathered_slice,
    "deterministic algorithms": deterministic_algorithms,
    "TF32": tf32,
    "reduced-precision sums": reduced_precision,
    "denormal flush": denormal_flush,
    "autocast": inside_autocast,
    "dtype of the gather": dtype_of_gather,
    "oneDNN": onednn,
    "attention kernel": attention_kernel,
    "CPU against GPU": cpu_against_gpu,
    "another GPU": another_gpu,
    "CUDA graph": cuda_graph,
    "compile, default": _compile("default"),
    "compile, max-autotune": _compile("max-autotune-no-cudagraphs"),
}
COMPILING = ("compile, default", "compile, max-autotune")


@contextmanager
def compiled_layers(layers: Sequence[torch.nn.Module], mode: str) -> Iterator[None]:
    """Every decoder layer compiled: one compilation serves them all, where the whole network would take minutes."""
    try:
        for layer in layers:
            layer.compile(mode=mode, dynamic=False)
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
