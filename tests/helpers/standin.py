"""Launches ``verify`` as srun would, from one process that has imported torch once: forking is cheap, importing is not.

``python standin.py PORT WORLD FOLDER CHANGES ARGUMENTS...``: what rank R prints goes to FOLDER/R, its exit status to
standard output, one ``R STATUS`` a line. CHANGES is JSON: environment variables of each rank.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch  # noqa: F401 - what takes long is loaded before the fork.

import verify.commands.run
import verify.runner.run  # noqa: F401
from verify.commands.cli import main


def become(rank: int, port: str, world: str, folder: str, changes: dict[str, str], arguments: list[str]) -> None:
    """This fork is rank ``rank``, and ends here."""
    output = os.open(f"{folder}/{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(
        {"SLURM_PROCID": str(rank), "SLURM_NTASKS": world, "SLURM_LOCALID": str(rank), "SLURM_STEP_ID": "0"},
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        **changes,
    )
    status = 99
    try:
        sys.argv = ["verify", *arguments]
        status = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def launch(port: str, world: str, folder: str, changes: str, arguments: list[str]) -> None:
    """Forks the ranks and tells how each ended."""
    pids = {}
    for rank in range(int(world)):
        pid = os.fork()
        if pid == 0:
            become(rank, port, world, folder, json.loads(changes).get(str(rank), {}), arguments)
        pids[pid] = rank
        Path(folder, f"{rank}.pid").write_text(str(pid))
    for _ in pids.copy():
        pid, status = os.wait()
        print(pids[pid], os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    launch(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
