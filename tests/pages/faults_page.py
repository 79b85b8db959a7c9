"""The catalogue as a page, made from the registry: ``python -m tests.pages.faults_page``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verify.errors import BadInput
from verify.faults import FAULTS
from verify.faults.registry import BEFORE, Fault
from verify.report.disk import write_whole
from verify.report.markdown import markdown_table
from verify.report.sections.blocks import Table

COMMAND = "python -m tests.pages.faults_page"
PAGE = Path("verify/faults/README.md")
_HEADINGS = ("fault", "what goes wrong", "seen at", "breaks", "step", "rank", "caught by")


RECIPE = """
import torch
from verify.faults.registry import Wiring, fault


@fault(source="engine issue 123", breaks="group", step=11, rank=0, caught_by="ranks_agree")
def slot_zeroed(wiring: Wiring) -> None:
    \"\"\"A gathered slot is lost on rank 0.\"\"\"

    def lose(slots):
        return [slots[0], torch.zeros_like(slots[1]), *slots[2:]] if wiring.at(11, 0) else slots

    wiring.on_gather(lose)
""".lstrip()

_TEXT = """# The faults

Made from the registry by `{command}`; a test fails while it is stale.

## Adding one

A fault is a function that replaces something a loop is given; loops and model know nothing of it. What may be replaced
is in [registry.py](registry.py) (`Wiring`).

```python
{recipe}```

1. `verify faults --from FILE.py` injects it from any file and says whether `ranks_agree` caught it, at step 11, on rank
   0; `verify run --loop FILE.py:slot_zeroed` prints the message that its victim would read.
2. To keep it, move it to the file of this folder that fits, with the report it comes from as `source`, and run
   `{command}`. A fault that needs image guidance takes `image=True`, one that strikes rank 2 also
   `least_ranks=3`, one that hangs `stuck_in="all_gather 1 of step 11"`.
3. If it is missed, the suite has a hole: do not weaken the fault, add or mend the check.

## Those there are

`verify faults` injects {two} faults on two ranks, `verify faults --world-size 3` all {all}. Those of a small engine
([engines.py](engines.py)) run on a number of ranks that it names; `--world-size 4` and `6` run them alone. Each must
be caught by the check named last, at its step, on its rank; the report of one that hangs must also name the collective
in which ranks are stuck. `unknown`: the loop cannot end, and the report must say on which rank and where; where it ends
all the same, as one of them does over NCCL, the check named beside it must fail. vo is vllm-project/vllm-omni, sg
sgl-project/sglang, pt pytorch/pytorch.

{table}"""


def rendered() -> str:
    """The whole page."""
    two = sum(fault.least_ranks <= 2 for fault in FAULTS.values())
    table = markdown_table(Table(_HEADINGS, [_row(fault) for fault in FAULTS.values()]))
    return _TEXT.format(command=COMMAND, recipe=RECIPE, two=two, all=len(FAULTS), table=table)


def _row(fault: Fault) -> list[str]:
    step = "any" if fault.step is None else "before 0" if fault.step == BEFORE else str(fault.step)
    rank = "every" if fault.rank is None else str(fault.rank)
    numbers = " or ".join(map(str, fault.ranks))
    engine = f" of {fault.target.rpartition(':')[2]}, {numbers} ranks" if fault.target else ""
    return [fault.name, fault.summary, fault.source, fault.breaks + engine, step, rank, fault.expected]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or compares it; 0 if it is up to date, 1 if not, 2 if it cannot be written."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes the page of the faults.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: this folder)")
    parsed = parser.parse_args(arguments)
    page = parsed.root / PAGE
    if page.is_file() and page.read_text(encoding="utf-8") == rendered():
        return 0
    if parsed.check:
        print(f"{page} is stale: run {COMMAND}")
        return 1
    try:
        write_whole(page, rendered())
    except BadInput as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    print(f"{page} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
