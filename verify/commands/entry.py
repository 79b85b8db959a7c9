"""The command ``verify`` of an installation. The wheel holds this file as ``cfg_verify.py``, beside the package.

Another project owns the name ``verify`` on the package index, and its module has that name too. Whichever is installed
later takes the other's files. This file is there either way, and says so in one line.
"""

from __future__ import annotations

import sys

SHADOWED = (
    "verify: the module verify belongs to another package, expected that of cfg-verify; uninstall the package named "
    "verify, then install cfg-verify again: pip uninstall verify && pip install --force-reinstall --no-deps cfg-verify"
)


def main() -> int:
    """Runs the command line; 2 where the module is another project's."""
    try:
        from verify.commands.cli import main as run
    except ImportError as error:
        if (error.name or "").split(".")[0] != "verify":
            raise
        print(SHADOWED, file=sys.stderr)
        return 2
    return run()
