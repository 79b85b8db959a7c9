"""Files that a user may name and that cannot be used: loops, targets, checkpoints, documents, saved cases."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_rows import Row
from safetensors.torch import load_file, save_file
from torch import Tensor

FIXTURES = Path(__file__).parents[2] / "fixtures"
RUN = json.loads((FIXTURES / "results" / "run-2ranks-7b-cuda-x1.json").read_text())
BENCH = json.loads((FIXTURES / "results" / "bench-1024-7b-cuda-x1.json").read_text())
Make = Callable[[Path], object]

# Loops

SHORT = "--height 32 --width 32 --num-timesteps 4 --timeout 240"
HEAD = "import torch\nfrom verify.loops.local import local\ndef loop(denoiser, request, x_0, group, observe):\n    "
ALL = "local(denoiser, request, x_0, group, observe)"


def written(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def source(what: str, content: str | bytes, *says: str) -> Row:
    return Row(f"loop: {what}", "run --loop {folder}/l.py:loop " + SHORT, says, written("l.py", content), ranks=True)


def body(what: str, text: str, *says: str) -> Row:
    return source(what, HEAD + text, *says)


def observing(what: str, text: str, *says: str) -> Row:
    return body(what, f"return local(denoiser, request, x_0, group, lambda step, x_t: {text})", *says)


LOOPS = [
    Row("loop: no such file", "run --loop absent.py:loop", ("'absent.py'", "a Python file"), ranks=True),
    Row("loop: no such module", "run --loop no.such.module:loop", ("'no.such.module'", "imported"), ranks=True),
    Row("loop: no colon", "run --loop l.py", ("'l.py'", "FILE.py:NAME"), ranks=True),
    Row("loop: not python", "run --loop ./l.txt:loop", ("'./l.txt'", ".py"), written("l.txt", "x = 1"), ranks=True),
    source("a syntax error", "def loop(:\n", "l.py", "SyntaxError", "line 1"),
    source("bytes", bytes(range(256)), "l.py", "imported"),
    source("raises on import", "raise ValueError('of\\nlines')\n", "l.py", "ValueError: of lines"),
    source("exits on import", "raise SystemExit(0)\n", "l.py", "SystemExit"),
    source("imports what is not there", "import nothing_of_this_name\n", "l.py", "nothing_of_this_name"),
    source("no such name", "def another(): ...\n", "l.py:loop", "it defines another"),
    source("not callable", "loop = 3\n", "l.py:loop", "it is a int"),
    source("two arguments", "def loop(denoiser, request): ...\n", "l.py:loop", "five positional arguments"),
    source("async", "async def loop(a, b, c, d, e): ...\n", "l.py:loop", "neither async nor yield"),
    body("returns None", ALL, "what the loop returned is 'NoneType'", "a tensor"),
    body("returns a list", f"return {ALL}.tolist()", "what the loop returned is 'list'"),
    body("returns float64", f"return {ALL}.double()", "float64 (4, 16)", "float32 (4, 16)"),
    body("returns another device", f"return {ALL}.to('meta')", "on meta", "on cpu"),
    body("returns fewer elements", f"return {ALL}[:-1]", "(3, 16)", "(4, 16)"),
    body("returns another shape", f"return {ALL}.t()", "(16, 4)", "(4, 16)"),
    body("returns a sparse tensor", f"return {ALL}.to_sparse()", "sparse", "to_dense"),
    observing("observes nothing", "None", "steps observed is 0", "call observe"),
    observing("observes ahead", "observe(step + 1, x_t)", "is 1, expected 0", "in order"),
    observing("observes backwards", "observe(2 - step, x_t)", "is 2, expected 0", "in order"),
    observing("observes twice", "(observe(step, x_t), observe(step, x_t))", "is 0, expected 1", "in order"),
    observing("observes a float", "observe(float(step), x_t)", "0.0", "an int"),
    observing("observes None", "observe(step, None)", "'NoneType'", "a tensor"),
    observing("observes half", "observe(step, x_t.half())", "float16", "float32"),
    observing("observes too few elements", "observe(step, x_t[1:])", "(3, 16)", "(4, 16)"),
]

# Targets

TARGET = """
class T:
    name = "mine"
    loops = {"reference": print, "parallel": print}
    expects = {"parallel": "local"}
    def prepare(self, request, options, rank, device): return 3
"""


def target(what: str, text: str, *says: str) -> Row:
    make = written("t.py", text)
    return Row(f"target: {what}", f"run --target {{folder}}/t.py:T {SHORT}", says, make, ranks="returns" in what)


TARGETS = [
    Row("target: nobody's", "run --target nobody", ("'nobody'", "builtin, vllm_omni")),
    Row("target: no such file", "run --target absent.py:T", ("'absent.py'", "a Python file")),
    target("raises on import", "1 / 0", "t.py", "ZeroDivisionError"),
    target("no such name", "class U: ...\n", "t.py:T", "it defines U"),
    target("raises when made", "class T:\n    def __init__(self): raise ValueError('no weights')\n", "no weights"),
    target("without loops", TARGET.replace("loops =", "loop ="), "t.py:T", "loops is missing"),
    target("without a reference", TARGET.replace('"reference"', '"other"'), "'reference' among them"),
    target("expects what there is not", TARGET.replace('"local"', '"fast"'), "'fast'", "round_robin"),
    target("prepare takes too few", TARGET.replace(", rank, device", ""), "takes (request, options, rank, device)"),
    target("prepare returns an int", TARGET, "returned a int", "expected a Prepared"),
]

# Checkpoints

WEIGHTS, CONFIG, INDEX = "ema.safetensors", "llm_config.json", "ema.safetensors.index.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def checkpoint(what: str, spoil: Make, *says: str, ranks: bool = False) -> Row:
    def make(folder: Path) -> None:
        spoil(Path(shutil.copytree(FIXTURES / "tiny_checkpoint", folder / "weights")))

    return Row(f"checkpoint: {what}", "run --checkpoint weights", says, make, ranks=ranks)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Make:
    def spoil(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        change(held)
        save_file(held, folder / WEIGHTS)

    return spoil


def configured(**changes: Any) -> Make:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return spoil


def only(name: str, content: bytes) -> Make:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return spoil


def linked_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


BOMB = pickle.dumps(Trap())
MISSING_SHARD = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors"}}).encode()
NAN = torch.full((16,), float("nan"), dtype=torch.bfloat16)
CHECKPOINTS = [
    Row("checkpoint: no such folder", "run --checkpoint absent", ("'absent'", CONFIG)),
    checkpoint("no configuration", lambda f: (f / CONFIG).unlink(), CONFIG),
    checkpoint("configuration is no JSON", written(CONFIG, "{"), CONFIG, "a JSON object"),
    checkpoint("configuration lacks a field", configured(hidden_size=...), "hidden_size"),
    checkpoint("configuration has text for a number", configured(hidden_size="64"), "hidden_size", "'64'"),
    checkpoint("no weights", lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    checkpoint("truncated", lambda f: os.truncate(f / WEIGHTS, 300_000), WEIGHTS, "whole"),
    checkpoint("empty", lambda f: os.truncate(f / WEIGHTS, 0), WEIGHTS, "whole"),
    checkpoint("a name missing", tensors(lambda t: t.pop(Q_PROJ)), "lacks 1 tensor", Q_PROJ),
    checkpoint("a name too many", tensors(lambda t: t.update(extra=t[Q_PROJ].clone())), "unexpected", "extra"),
    checkpoint("a wrong shape", tensors(lambda t: t.update({Q_PROJ: t[Q_PROJ][:-1].clone()})), Q_PROJ, "(63, 64)"),
    checkpoint("a wrong dtype", tensors(lambda t: t.update({Q_PROJ: t[Q_PROJ].int()})), Q_PROJ, "'I32'"),
    checkpoint(
        "a NaN", tensors(lambda t: t.update({"llm2vae.bias": NAN})), "llm2vae.bias", "nan", "finite", ranks=True
    ),
    checkpoint("a link to itself", linked_to_itself, WEIGHTS, "symbolic links"),
    checkpoint("an index that names a missing shard", only(INDEX, MISSING_SHARD), "model-1-of-2.safetensors"),
    checkpoint("a pickle called .safetensors", only(WEIGHTS, BOMB), WEIGHTS, "safetensors file"),
    checkpoint("a pickle called .pt", only("ema.pt", BOMB), "ema.pt is not read"),
    checkpoint("a pickle called .bin", only("pytorch_model.bin", BOMB), "pytorch_model.bin is not read"),
]

# Documents and saved cases


def document(what: str, content: Any, *says: str, options: str = "--html o.html --markdown o.md") -> Row:
    raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
    return Row(f"document: {what}", f"report d.json {options}", says, written("d.json", raw))


def run_with(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (RUN | changes).items() if value is not ...}


def replay(what: str, content: str, *says: str) -> Row:
    return Row(f"saved case: {what}", "fuzz --replay c.json", ("'c.json'", *says), written("c.json", content))


DEEP: Any = json.loads("[" * 900 + "]" * 900)
DOCUMENTS = [
    Row("document: no such file", "report absent.json", ("'absent.json'", "a readable file")),
    Row("document: a folder", "report .", ("'.'", "a readable file")),
    document("empty", "", "'d.json'", "JSON"),
    document("binary", bytes(range(256)), "'d.json'", "a readable file"),
    document("not JSON", "{'a': 1}", "'d.json'", "JSON"),
    document("cut short", json.dumps(RUN)[:2000], "'d.json'", "JSON"),
    document("a list", "[]", "'list'", "a JSON object"),
    document("nests for ever", "[" * 100_000, "'d.json'", "JSON"),
    document("nests too deep to show", {"schema": 1, "kind": "mutants", "x": [{"y": DEEP}], "environment": []}, "`x`"),
    document("a NaN", run_with(timings={"total": float("nan")}), "'d.json'", "NaN is no number in JSON"),
    document("a number beyond floats", json.dumps(RUN).replace('"total":', '"total": 1e999, "x":'), "1e999"),
    document("another schema", run_with(schema=3), "is 3", "expected 1 or 2"),
    document("no schema", run_with(schema=...), "is None", "expected 1"),
    document("no verdict", run_with(verdict=...), "missing required field `verdict`"),
    document("another verdict", run_with(verdict="good"), "Invalid enum value 'good'", "$.verdict"),
    document("a part too many", run_with(surprise=1), "surprise"),
    document("text for a number", run_with(world_size="2"), "$.world_size", "`int`, got `str`"),
    document("no checks in a pass", run_with(checks=[]), "checks"),
    document("more ranks than there are atoms", run_with(world_size=10**80), "$.world_size"),
    document("no kind", {"schema": 1}, "the kind of document is None"),
    document("another kind", {"schema": 1, "kind": "prophecy"}, "'prophecy'"),
    document("a benchmark without points", BENCH | {"points": {}}, "$.points"),
    document("a benchmark of nothing", BENCH | {"points": [{}]}, "$.points[0]", "preset"),
    document("a benchmark of another schema", BENCH | {"schema": "1"}, "'1'"),
    document("a page in its own place", RUN, "'d.json'", "another file than the document", options="--html d.json"),
    document("trend of no folder", RUN, "'absent'", "a folder", options="--trend absent"),
    document("trend of what is no time", run_with(timings={"total": "soon"}), "timings", options="--trend ."),
    replay("not JSON", "{", "JSON"),
    replay("another document", json.dumps(RUN), "saved"),
    replay("a list", "[]", "saved"),
    replay("half of one", '{"schema": 1, "kind": "fuzz case", "property": "x"}', "KeyError"),
]
ROWS = [*LOOPS, *TARGETS, *CHECKPOINTS, *DOCUMENTS]
