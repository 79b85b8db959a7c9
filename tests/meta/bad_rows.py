"""What a user may get wrong on a command line, in a request, in the environment and where output goes.

Each row is one command. ``says`` holds what its one line of refusal must name, the value first.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def nothing(folder: Path) -> None:
    """Leaves the folder empty."""


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        what: is wrong; the test's name.
        words: of the command, ``verify`` left out; ``{folder}`` is the working directory.
        says: what the refusal must hold.
        make: fills the working directory.
        variables: of the environment.
        ranks: whether it shows only once ranks run. All others must be refused before any rank starts.
    """

    what: str
    words: str
    says: tuple[str, ...]
    make: Callable[[Path], object] = nothing
    variables: tuple[tuple[str, str], ...] = ()
    ranks: bool = False

    def arguments(self, folder: Path) -> list[str]:
        """The command's arguments in ``folder``."""
        return [word.replace("{folder}", str(folder)) for word in shlex.split(self.words)]


def flag(words: str, *says: str) -> Row:
    return Row(words.replace("/", "|")[:60], words, says)


HUGE = "9" * 400
USAGE = [
    flag("nope", "'nope'", "run"),
    flag("run nope", "'nope'", "an option of verify run"),
    flag("run --heigh 32", "'--heigh'"),
    flag("fuzz nope", "'nope'", "an option of verify fuzz"),
    flag("faults --loop a:b", "'--loop'", "an option of verify faults"),
    flag("bench --png x", "'--png'", "an option of verify bench"),
    flag("doctor --seed 1", "'--seed'", "an option of verify doctor"),
    flag("report", "FILE", "required"),
    flag("report a.json b.json", "'b.json'", "an option of verify report"),
    Row("a line break and an escape", "run 'a\nb\x1b[2J'", (r"a\nb\x1b[2J",)),
    Row("a value of many lines", "run --preset 'a\nb'", (r"'a\nb'", "tiny")),
    flag("run --height", "--height", "one argument"),
    flag("run --cfg-interval 0.4", "--cfg-interval", "2 arguments"),
    *(
        flag(f"run {option} ''", f"{option} is ''")
        for option in ("--json", "--html", "--markdown", "--loops", "--loop")
    ),
    *(flag(f"run {option} ''", f"{option} is ''") for option in ("--checkpoint", "--backend", "--device", "--dtype")),
    flag("fuzz --save ''", "--save is ''"),
    flag("bench --sizes ''", "--sizes is ''"),
    flag("doctor --json ''", "--json is ''"),
]
SETTINGS = [
    flag("run --preset huge", "'huge'", "tiny, small, 7b"),
    flag("run --dtype int8", "'int8'", "bfloat16"),
    flag("run --device cuda:0", "'cuda:0'", "cpu or cuda"),
    flag("run --backend mpi", "'mpi'", "gloo or nccl"),
    flag("run --backend nccl", "'nccl'", "gloo on the cpu"),
    flag("run --loops ring", "'ring'", "broadcast, local, round_robin"),
    flag("run --loops local,", "''", "separate names by commas"),
    flag("run --loops reference", "'reference'"),
    flag("run --loops local,local", "'local,local'", "each loop once"),
    flag("run --loops local --loop a:b", "--loops and --loop"),
    flag("run --loop a.py:b --expect fast", "'fast'", "round_robin, reduce, any"),
    flag("run --reference half", "'half'", "full, inductive"),
    flag("run --world-size 3", "3", "round_robin"),
    flag("run --world-size 0 --loops round_robin", "0", "from 1 to 64"),
    flag("run --world-size 65 --loops round_robin", "65", "from 1 to 64"),
    flag("run --world-size two", "'two'", "int"),
    flag("run --timeout 0", "0.0", "above 0"),
    flag("run --timeout nan", "nan", "above 0"),
    flag("run --timeout soon", "'soon'", "float"),
    flag("fuzz --profile slow", "'slow'", "fast, ci, nightly"),
    flag("fuzz --cases 0", "0", "from 1"),
    flag("fuzz --cases 1e3", "'1e3'", "int"),
    flag("fuzz --seed -1", "-1", "from 0"),
    flag("fuzz --device tpu", "'tpu'", "cpu or cuda"),
    flag("fuzz --combine nowhere.py:f", "'nowhere.py'", "a Python file"),
    flag("fuzz --combine os:sep", "'os:sep'", "a function"),
    flag("fuzz --mutants --envelope", "--mutants and --envelope"),
    flag("fuzz --envelope --target builtin", "--target", "--envelope", "built-in combine alone"),
    flag("fuzz --mutants --combine a.py:b", "--combine", "--mutants", "built-in combine alone"),
    flag("fuzz --mutants --profile slow", "'slow'", "fast, ci, nightly"),
    flag("fuzz --envelope --preset huge", "'huge'", "tiny, small, 7b"),
    flag("fuzz --envelope --timeout inf", "inf", "from 1 to 86400"),
    flag("fuzz --replay nowhere.json", "'nowhere.json'", "a readable file"),
    flag("faults --only nothing", "'nothing'", "--list"),
    flag("faults --only rank_dies,rank_dies", "'rank_dies,rank_dies'", "each fault once"),
    flag("faults --world-size 5", "5", "2 (text guidance)"),
    flag("faults --timeout -1", "-1.0", "above 0"),
    flag("bench --alternations 0", "0", "at least 1"),
    flag("bench --sizes 128,big", "'128,big'", "numbers of pixels"),
    flag("bench --sizes 128,128", "'128,128'", "different"),
    flag("bench --sizes 100", "100", "a multiple of 16"),
]
REQUESTS = [
    flag("run --height 40", "40", "use 32 or 48"),
    flag("run --height 0", "0", "from 16 to 4096"),
    flag("run --width 1e3", "'1e3'", "int"),
    flag("run --width 8192", "8192", "from 16 to 4096"),
    flag(f"run --num-timesteps {HUGE}", "999", "from 2 to 1000"),
    flag(f"run --seed {HUGE * 20}", "999", "int"),
    flag("run --num-timesteps 1", "1", "from 2 to 1000"),
    flag("run --num-timesteps nan", "'nan'", "int"),
    flag("run --seed -1", "-1", "from 0"),
    flag("run --seed 9223372036854775808", "9223372036854775808", "from 0 to 9223372036854775807"),
    flag("run --timestep-shift 0", "0.0", "0.001 to 1000"),
    flag("run --timestep-shift nan", "nan", "0.001 to 1000"),
    flag("run --timestep-shift much", "'much'", "float"),
    flag("run --cfg-text-scale 0.5", "0.5", "from 1 to 1000"),
    flag("run --cfg-text-scale inf", "inf", "from 1 to 1000"),
    flag("run --cfg-img-scale 1e9", "1000000000.0", "from 1 to 1000"),
    flag("run --cfg-img-scale 2 --cfg-text-scale 1", "2.0", "cfg_text_scale"),
    flag("run --cfg-renorm-min 1.5", "1.5", "from 0 to 1"),
    flag("run --cfg-renorm-min=-0.1", "-0.1", "from 0 to 1"),
    flag("run --cfg-renorm-type Global", "'Global'", "channel"),
    flag("run --cfg-interval 0.9 0.1", "[0.9, 0.1]", "LO <= HI"),
    flag("run --cfg-interval 0 nan", "nan", "two numbers"),
    flag("run --cfg-interval=-1 1", "--cfg-interval", "2 arguments"),
    flag("bench --height 17", "17", "use 16 or 32"),
    flag("faults --num-timesteps 0", "0", "from 2 to 1000"),
]


def full(folder: Path) -> None:
    """A folder, a link to nowhere and one to itself."""
    (folder / "a_folder").mkdir()
    (folder / "a_file").write_text("kept")
    (folder / "dangling").symlink_to(folder / "absent" / "x.json")


def to(words: str, *says: str) -> Row:
    return Row(f"output: {words.replace('/', '|')[:50]}", words, says, full)


OUTPUTS = [
    *(to(f"{command} --json a_folder", "'a_folder'", "a folder") for command in ("run", "fuzz", "bench", "doctor")),
    *(to(f"{command} --json absent/x.json", "'absent/x.json'", "create the folder") for command in ("faults", "bench")),
    to("run --html a_file/x.html", "'a_file/x.html'", "create the folder"),
    to("run --markdown dangling", "'dangling'", "choose another one"),
    to("run --json /proc/x.json", "'/proc/x.json'", "choose another one"),
    to(f"run --json {'n' * 300}", "nnn", "choose another one"),
    to("run --json x --html x", "--html is 'x'", "another file than --json"),
    to("run --json x --markdown ./x", "--markdown is './x'", "another file than --json"),
    to("run --html - --markdown -", "--markdown is '-'", "another file than --html"),
]


def variable(name: str, value: str, words: str, *says: str) -> Row:
    return Row(f"{name}={value[:20]}", words, (repr(value), *says), variables=((name, value),))


VARIABLES = [
    variable("OMP_NUM_THREADS", "abc", "run", "OMP_NUM_THREADS", "a number of threads"),
    variable("OMP_NUM_THREADS", "0", "fuzz", "OMP_NUM_THREADS", "from 1"),
    variable("MKL_NUM_THREADS", "-2", "bench", "MKL_NUM_THREADS", "from 1"),
    variable("CUDA_VISIBLE_DEVICES", "first", "run --device cuda", "CUDA_VISIBLE_DEVICES", "numbers of GPUs"),
    variable("CUDA_VISIBLE_DEVICES", "0;1", "fuzz --device cuda", "CUDA_VISIBLE_DEVICES", "separated by commas"),
    variable("GLOO_SOCKET_IFNAME", "no-such-card", "run", "GLOO_SOCKET_IFNAME", "lo"),
]
ROWS = [*USAGE, *SETTINGS, *REQUESTS, *OUTPUTS, *VARIABLES]
