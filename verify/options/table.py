"""The table: what every command takes.

An option that fills a field of :class:`verify.runner.job.Job` names it. Nothing else need be written for it:
parser, job and reproducing command line follow. A test compares the defaults here with those of the fields.
"""

from __future__ import annotations

from dataclasses import replace

from verify.options.alone import COMPLETION, HELP, INIT
from verify.options.option import Command, Group, Option
from verify.options.rounding import ROUNDING
from verify.options.targets import given_options, split_options
from verify.options.values import ids, listed, named_ranks, names

TARGETS = "builtin, vllm_omni, FILE.py:NAME or PACKAGE.MODULE:NAME"

TARGET = Option("--target", f"whose loops: {TARGETS}", "target", shown=lambda job: split_options(job.target)[0],
                default="builtin", metavar="NAME", always=True)  # fmt: skip
TARGET_OPTION = Option("--target-option", "an argument, as text, for the class or function that makes the target",
                       shown=lambda job: given_options(job.target), repeated=True, metavar="K=V")  # fmt: skip
LOOPS = Option("--loops", "the target's loops; if not given, broadcast,local or all of another target's",
               "loops", into=names, shown=lambda job: ",".join(job.judged), metavar="A,B", always=True)  # fmt: skip
LOOP = Option("--loop", "a loop of your own instead of the target's", "loop_reference",
              metavar="FILE_OR_MODULE:FUNCTION")  # fmt: skip
WORLD_SIZE = Option("--world-size", "ranks; one for each branch if not given", "world_size", type=int, metavar="N",
                    shown=named_ranks, always=True)  # fmt: skip
DEVICE = Option("--device", "cpu or cuda", "device", default="cpu", metavar="D", always=True)
BACKEND = Option("--backend", "gloo or nccl; what fits if not given", "backend", metavar="B")
PRESET = Option("--preset", "model size: tiny, small or 7b", "options.preset", default="tiny", metavar="P", always=True)

PLACEMENT = Group("where and with what", (
    WORLD_SIZE,
    DEVICE,
    BACKEND,
    PRESET,
    Option("--dtype", "of the network", "options.dtype", default="bfloat16", metavar="TYPE", always=True),
    Option("--no-autocast", "run the loop outside autocast on cuda too", switch=True,
           shown=lambda job: job.device == "cuda" and not job.options.autocast),
    Option("--checkpoint", "weights in BAGEL-7B-MoT's layout instead of seeded ones", "options.checkpoint",
           metavar="DIR"),
    Option("--weights", "of a checkpoint that holds several files of weights", "options.bagel.weights",
           metavar="FILE"),
    Option("--step-sizes", "device, as Bagel's evaluation has them, or host, as its app", "options.step_sizes",
           default="device", metavar="WHERE"),
))  # fmt: skip

BAGEL = Group("what Bagel's image is conditioned on", (
    Option("--prompt", "text; seeded token ids if not given", "options.bagel.prompt", metavar="TEXT"),
    Option("--prompt-ids", "the prompt's token ids instead", "options.bagel.prompt_ids", into=ids,
           shown=lambda job: listed(job.options.bagel and job.options.bagel.prompt_ids), metavar="N,...",
           instead_of="--prompt"),
    Option("--system", "text in front of everything", "options.bagel.system", metavar="TEXT"),
    Option("--think", "text that was thought before drawing; only the gen branch reads it", "options.bagel.think",
           metavar="TEXT"),
    Option("--condition", "a condition image's latents, once for each; or none, or seeded; none with a prompt, else "
           "seeded where the img branch is evaluated", "options.bagel.condition", into=tuple, repeated=True,
           metavar="FILE.safetensors"),
))  # fmt: skip

REQUEST = Group("the request", (
    Option("--height", "of the image; the preset's if not given", "request.height", type=int, metavar="PIXELS",
           always=True),
    Option("--width", "of the image; the preset's if not given", "request.width", type=int, metavar="PIXELS",
           always=True),
    Option("--num-timesteps", "points on [1, 0]", "request.num_timesteps", default=50, type=int, metavar="N"),
    Option("--timestep-shift", "1 leaves the points evenly spaced", "request.timestep_shift", default=3.0, type=float,
           metavar="S"),
    Option("--cfg-interval", "a step at t is guided when LO < t <= HI", "request.cfg_interval", default=(0.4, 1.0),
           type=float, nargs=2, metavar=("LO", "HI")),
    Option("--cfg-text-scale", "above 1 the text branch is evaluated", "request.cfg_text_scale", default=4.0,
           type=float, metavar="S"),
    Option("--cfg-img-scale", "above 1 the img branch is evaluated", "request.cfg_img_scale", default=1.0, type=float,
           metavar="S"),
    Option("--cfg-renorm-type", "global, channel or text_channel", "request.cfg_renorm_type", default="global",
           metavar="TYPE"),
    Option("--cfg-renorm-min", "the least factor of the renorm; 1 turns it off", "request.cfg_renorm_min", default=0.0,
           type=float, metavar="M"),
    Option("--seed", "of noise, prompt and condition image", "request.seed", default=0, type=int, metavar="N"),
))  # fmt: skip

JSON = Option("--json", "write what was found to FILE; - for standard output", metavar="FILE", reproduces=False)
HTML = Option("--html", "write a self-contained page to FILE; - for standard output", metavar="FILE", reproduces=False)
MARKDOWN = Option("--markdown", "write a summary to FILE; - for standard output", metavar="FILE", reproduces=False)
TIMEOUT = Option("--timeout", "seconds for all loops", "timeout", default=300.0, type=float, metavar="S")
QUIET = Option("--quiet", "print failures and the verdict alone", short="-q", switch=True, reproduces=False)
VERBOSE = Option("--verbose", "print everything that the page has in words", short="-v", switch=True, reproduces=False)
OUTPUT = Group("what comes out", (JSON, HTML, MARKDOWN, QUIET, VERBOSE))

RUN = Command(
    "run the loops on real ranks and compare every x_t, bit by bit",
    (
        Group("what is judged", (
            LOOPS,
            LOOP,
            Option("--expect", "whose exchanges --loop must make: broadcast, local, round_robin, reduce or any",
                   "expect", shown=lambda job: job.expect if job.loop_reference else None, default="local",
                   metavar="KIND", always=True),
            TARGET,
            TARGET_OPTION,
            Option("--reference", "full; inductive: each step from the x_t recorded before it; rounding: so too, and "
                   "it may differ by rounding", "reference", default="full", metavar="MODE"),
            *ROUNDING,
            Option("--requests", "one; sequence: two others, then the first again; or matrix: a pairwise covering set. "
                   "If not given, sequence where it costs seconds (--preset tiny), else one", "requests",
                   metavar="SET"),
            Option("--fill-memory", "fill memory that nothing has written yet with NaN, so that reading it shows",
                   "fills_memory", default=False, switch=True),
            Option("--window", "judge K steps at a time, in several runs of the loop; all at once if not given",
                   "window", type=int, metavar="K"),
        )),
        PLACEMENT,
        Group("how ranks are started", (
            Option("--larger-world", "make the CFG group a part of a larger world, in another order", "larger_world",
                   default=False, switch=True),
            Option("--fresh-interpreters", "start each rank as a Python of its own, with a hash seed of its own even "
                   "where PYTHONHASHSEED is set", "fresh_interpreters", default=False, switch=True),
        )),
        Group("how forward passes run", (
            Option("--cuda-graph", "replay them from CUDA graphs; on a GPU at the size of 7b if not given",
                   "options.bagel.cuda_graph", negatable=True),
        )),
        BAGEL,
        REQUEST,
        Group("how long", (TIMEOUT,)),
        replace(OUTPUT, options=(
            *OUTPUT.options,
            Option("--image", "draw rank 0's final latent to FILE.png, by the checkpoint's decoder", "image",
                   metavar="FILE.png", reproduces=False),
        )),
    ),
    ("verify run", "verify run --loop my_loop.py:loop --html report.html", "verify run --preset 7b --device cuda"),
)  # fmt: skip

FAULTS = Command(
    "inject real bugs, and show that each is caught and placed",
    (
        Group("which faults", (
            Option("--only", "these faults; all if not given", metavar="NAME,..."),
            Option("--from", "the faults of a file of your own", metavar="FILE.py"),
            Option("--list", "print the catalogue and run nothing", switch=True),
            replace(TARGET, help=f"inject into the loops of another engine: {TARGETS}"),
            TARGET_OPTION,
        )),
        replace(PLACEMENT, options=(replace(WORLD_SIZE, help="ranks: 2, or 3 with image guidance; 2 if not given"),
                                    *PLACEMENT.options[1:])),
        REQUEST,
        Group("how long", (replace(TIMEOUT, help="seconds for one fault", default=120.0),)),
        OUTPUT,
    ),
    ("verify faults", "verify faults --list", "verify faults --only scale_lost_on_one_rank --world-size 3"),
)  # fmt: skip

FUZZ = Command(
    "test the combine on every rank as an adversary would, or measure what its bits depend on",
    (
        Group("what is done", (
            Option("--profile", "fast, ci or nightly: how many cases", default="fast", metavar="NAME", always=True),
            Option("--cases", "another number of cases", type=int, metavar="N"),
            Option("--seed", "of everything drawn", default=0, type=int, metavar="N", always=True),
            Option("--combine", "a combine of your own instead", metavar="FILE_OR_MODULE:FUNCTION"),
            replace(TARGET, help="the combine that a target offers instead", field="", default=None, always=False),
            TARGET_OPTION,
            Option("--replay", "evaluate one saved case again, in the setting it was saved with", metavar="FILE"),
            Option("--mutants", "fuzz combines with one thing wrong, and show what sees it", switch=True),
            Option("--envelope", "measure which settings must match across ranks", switch=True),
        )),
        # Without defaults: what a saved case was found with holds unless another is given.
        Group("where", (
            replace(WORLD_SIZE, help="ranks; 2 if not given", field=""),
            replace(DEVICE, help="cpu or cuda; cpu if not given", default=None, field=""),
            replace(BACKEND, field=""),
            replace(PRESET, help="the envelope's model: tiny, small or 7b", field="", always=False),
        )),
        OUTPUT,
        Group("how long, and what is kept", (
            Option("--save", "for failing cases", default="fuzz-failures", metavar="DIR", reproduces=False),
            replace(TIMEOUT, help="seconds for --envelope", default=540.0, field=""),
        )),
    ),
    ("verify fuzz", "verify fuzz --combine my_engine.guidance:combine", "verify fuzz --envelope --device cuda"),
)  # fmt: skip

BENCH = Command(
    "time the loop versions against each other, or the cost of verifying",
    (
        Group("what is measured", (
            replace(LOOPS, always=False),
            replace(TARGET, always=False),
            TARGET_OPTION,
            Option("--alternations", "runs of each loop, one number or one for each size", default="10",
                   metavar="N[,N...]"),
            Option("--overhead", "measure the cost of verifying instead", switch=True),
            Option("--forwards", "time TARGET's forward pass beside the built-in one's", metavar="TARGET",
                   instead_of="--overhead"),
            Option("--cuda-graph", "also with forward passes replayed from CUDA graphs; at named sizes only",
                   nargs="?", const="all", metavar="PIXELS,..."),
            Option("--time-limit", "end within S seconds, with as many alternations as fit", type=float, metavar="S"),
        )),
        Group("points: every combination of these is measured", (
            Option("--sizes", "image sides; the preset's if not given", metavar="PIXELS,..."),
            Option("--presets", "instead of --preset", metavar="NAME,..."),
            Option("--world-sizes", "instead of --world-size; 3 turns image guidance on", metavar="N,..."),
            Option("--cfg-intervals", "instead of --cfg-interval", metavar="LO:HI,..."),
            Option("--timestep-counts", "instead of --num-timesteps", metavar="N,..."),
        )),
        PLACEMENT,
        REQUEST,
        Group("how long", (replace(TIMEOUT, help="seconds for one loop", default=600.0),)),
        OUTPUT,
    ),
    ("verify bench", "verify bench --overhead", "verify bench --preset 7b --device cuda --sizes 256,512,1024"),
)  # fmt: skip

REPORT = Command(
    "turn a JSON document into a page or a summary",
    (
        Group("what is shown", (
            Option("document", "what a command wrote with --json", metavar="FILE"),
            Option("--trend", "set its timings beside those of the documents in DIR", metavar="DIR"),
            replace(TARGET, help="refuse a document about another target than this", field="", default=None,
                    always=False),
            TARGET_OPTION,
        )),
        Group("what comes out", (HTML, MARKDOWN, VERBOSE)),
    ),
    ("verify report run.json", "verify report run.json --html run.html"),
)  # fmt: skip

MATRIX = Command(
    "run many targets in many combinations, on several releases of an engine",
    (
        Group("what is run", (
            Option("plan", "a TOML file of rows and columns, or vllm_omni", metavar="PLAN"),
            Option("--python", "the interpreter that has a release", repeated=True, metavar="RELEASE=PYTHON"),
            Option("--jobs", "cells at a time", default=2, type=int, metavar="N", reproduces=False),
        )),
        Group("how long, and what is kept", (
            Option("--time-limit", "seconds for the whole; what is left is unknown", default=3600.0, type=float,
                   metavar="S"),
            replace(TIMEOUT, help="seconds for one cell", field=""),
            Option("--keep", "results of cells, so that a matrix goes on where it was", default="matrix-cells",
                   metavar="DIR", reproduces=False),
            Option("--since", "tell what changed against an earlier document", metavar="MATRIX.json",
                   reproduces=False),
        )),
        OUTPUT,
    ),
    ("verify matrix vllm_omni --python 0.30.0=.tox/upstream-0.30.0/bin/python --html matrix.html",),
)  # fmt: skip

DOCTOR = Command(
    "show what this machine can run",
    (
        Group("what is looked at", (
            replace(TARGET, help=f"also what of this target can be judged: {TARGETS}", field="", default=None,
                    always=False),
            TARGET_OPTION,
        )),
        OUTPUT,
    ),
    ("verify doctor", "verify doctor --target verify_target.py:MyTarget"),
)  # fmt: skip

# Each command is a module of verify.commands with ``execute(arguments) -> exit status``.
COMMANDS = {
    "run": RUN,
    "faults": FAULTS,
    "fuzz": FUZZ,
    "bench": BENCH,
    "matrix": MATRIX,
    "report": REPORT,
    "doctor": DOCTOR,
    "init": INIT,
    "help": HELP,
    "completion": COMPLETION,
}
