"""``verify init``: the files with which another repository begins."""

from __future__ import annotations

import argparse
from pathlib import Path

from verify.errors import BadInput

TEMPLATES = Path(__file__).parent / "templates"
# Where each template goes.
ALWAYS = {"verify_target.py": "verify_target.py", "test_cfg_parallel.py": "tests/test_cfg_parallel.py"}
CI = {
    "github": {"github.yml": ".github/workflows/verify.yml"},
    "buildkite": {"buildkite.yml": ".buildkite/verify.yml"},
    "slurm": {"slurm.sh": "verify.slurm.sh"},
}

_NEXT = """
It runs as it is, on a toy engine:

  pytest                                                                    green
  PLANTED_BUG=1 pytest                                                      red: rank, step and cause
  pytest --pyargs verify.gate --verify-target verify_target.py:MyTarget     every claim, one test each

Then replace the toy in verify_target.py by your engine; `verify help target` shows how.
"""


def execute(arguments: argparse.Namespace) -> int:
    """Writes the files, says what to do with them and returns 0."""
    for name in (chosen := arguments.ci.split(",")):
        if name not in CI:
            raise BadInput.of("--ci", name, f"some of {', '.join(CI)}, separated by commas", "choose some")
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise BadInput.of("folder", str(folder), "a folder", "there is none of that name; make it or correct the name")
    parts = [ALWAYS, *(CI[name] for name in chosen)]
    files = {folder / path: TEMPLATES / name for part in parts for name, path in part.items()}
    present = [str(path) for path in files if path.exists()]
    if present and not arguments.force:
        raise BadInput(f"{', '.join(present)} exists already, expected to write it; move it away, or give --force")
    try:
        for path, template in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(template.read_bytes())
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
            print(f"wrote {path}")
    except OSError as error:
        raise BadInput.of("folder", str(folder), "a folder that can be written to", str(error)) from None
    print(_NEXT, end="")
    return 0
