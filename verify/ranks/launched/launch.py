"""What a launcher says of this process: torchrun, srun, mpirun. Reads environment variables only, and needs no torch.

The names are those of the launchers' own documents: torchrun's environment variables, srun's output environment
variables, Open MPI's ``OMPI_*``, and ``PMI_*`` of MPICH, Intel MPI and Cray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from verify.errors import BadInput

# For each launcher the variables of rank, world size and local rank; where several may hold it, the first that is set.
# An MPI launcher inside a Slurm job inherits Slurm's variables, and torchrun those of both: the innermost comes first.
_LAUNCHERS = (
    ("torchrun", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",)),
    ("mpirun", ("OMPI_COMM_WORLD_RANK",), ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    ("mpiexec", ("PMI_RANK",), ("PMI_SIZE",), ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID")),
    ("srun", ("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",)),
)
# What srun sets and sbatch does not: a batch script has a rank and its job's number of tasks too, but runs once.
_STEP = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")
_ADDRESS, _PORT, _ELASTIC = "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"
_MOST_PROCESSES = 4096

_Variable = tuple[str, str]  # Its name and its value.


@dataclass(frozen=True)
class Launch:
    """This process among those that were launched together.

    Attributes:
        launcher: ``torchrun``, ``srun``, ``mpirun`` or ``mpiexec``.
        rank: this process's global rank.
        world_size: how many processes there are.
        local_rank: its number on its host; None where the launcher does not say.
        address: of the store in which they meet.
        port: of that store.
        agent_store: whether the launcher runs the store; else global rank 0 does.
        attempt: which try this is, where the launcher starts all processes again after a failure.
        shape: hosts and processes a host, where the launcher says so and hosts are alike.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int | None
    address: str
    port: int
    agent_store: bool = False
    attempt: str = "0"
    shape: tuple[int, int] | None = None

    def coordinates(self, ranks: int) -> tuple[int, int]:
        """This process's replica and its rank in it, where a replica is ``ranks`` consecutive processes.

        Raises:
            BadInput: the processes do not make whole replicas.
        """
        if self.world_size % ranks:
            raise BadInput(
                f"{self.launcher} started {self.world_size} process{'es' * (self.world_size != 1)}, expected a "
                f"multiple of {ranks}, the ranks of one CFG group; start {ranks}, {2 * ranks} or another multiple, or "
                "change --world-size"
            )
        return divmod(self.rank, ranks)

    @property
    def on_one_machine(self) -> bool:
        """Whether the store's address is one that only processes of its own machine can reach."""
        return self.address in ("localhost", "::1") or self.address.startswith("127.")

    def command(self, command: str) -> str:
        """The launcher's command line around ``verify run ...``; what it leaves out the notes and README say.

        Where hosts are not alike, or the variables were exported by hand, torchrun on one host starts as many.
        """
        if self.launcher == "torchrun":
            hosts, processes = self.shape or (1, self.world_size)
            return f"torchrun --nnodes {hosts} --nproc-per-node {processes} -m {command}"
        return f"{self.launcher} -n {self.world_size} python -m {command}"


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What the launcher says; None for a process started by hand, by a batch script, or alone by srun or mpirun.

    Raises:
        BadInput: a variable that a launcher sets is missing or holds nonsense.
    """
    for launcher, rank, world_size, local in _claims(environment):
        processes = _integer(*world_size, 1, _MOST_PROCESSES)
        if processes == 1 and not (launcher == "torchrun" and _ELASTIC in environment):
            continue  # One process that a batch system started is no group: it starts its ranks itself.
        return Launch(
            launcher=launcher,
            rank=_integer(*rank, 0, processes - 1),
            world_size=processes,
            local_rank=None if local is None else _integer(*local, 0, processes - 1),
            address=_required(environment, _ADDRESS, launcher),
            port=_integer(_PORT, _required(environment, _PORT, launcher), 1, 65535),
            agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            shape=_shape(environment, processes) if launcher == "torchrun" else None,
        )
    return None


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may print what all of them would: a process started by hand, or global rank 0."""
    for launcher, rank, world_size, _ in _claims(environment):
        # No launcher sets nonsense, nor half of a set: somebody exported it, and may have started no other process.
        if not _is_integer(world_size[1], 1, _MOST_PROCESSES):
            return True
        if (processes := int(world_size[1])) > 1:
            placed = _is_integer(rank[1], 0, processes - 1) and not _is_half(environment, launcher)
            return not placed or int(rank[1]) == 0
    return True


def _claims(environment: Mapping[str, str]) -> Iterator[tuple[str, _Variable, _Variable, _Variable | None]]:
    """Each launcher that says it started this process, the innermost first, and its rank, world size and local rank."""
    for launcher, rank_names, size_names, local_names in _LAUNCHERS:
        rank, world_size = _first(environment, rank_names), _first(environment, size_names)
        if rank is None or world_size is None or (launcher == "srun" and _first(environment, _STEP) is None):
            continue
        yield launcher, rank, world_size, _first(environment, local_names)


def _is_half(environment: Mapping[str, str], launcher: str) -> bool:
    """Whether only half of what torchrun sets is there: somebody exported it, and there may be no other process."""
    meeting = environment.get(_ADDRESS) and environment.get(_PORT)
    return launcher == "torchrun" and _ELASTIC not in environment and not meeting


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> _Variable | None:
    return next(((name, environment[name]) for name in names if name in environment), None)


def _required(environment: Mapping[str, str], name: str, launcher: str) -> str:
    if not environment.get(name):
        what = "the host of global rank 0" if name == _ADDRESS else "a free port there"
        if _is_half(environment, launcher):
            raise BadInput(
                f"{name} is not set, expected {what}, since RANK and WORLD_SIZE say that this is one of "
                f"{environment['WORLD_SIZE']} processes; export {_ADDRESS} and {_PORT}, or unset RANK and WORLD_SIZE"
            )
        raise BadInput(
            f"{name} is not set, expected {what}, where the processes that {launcher} started meet; export "
            f"{_ADDRESS} and {_PORT}, or start verify without {launcher}"
        )
    return environment[name]


def _integer(name: str, value: str, least: int, greatest: int) -> int:
    if not _is_integer(value, least, greatest):
        raise BadInput.of(name, value, f"an integer from {least} to {greatest}", "leave it to the launcher")
    return int(value)


def _is_integer(value: str, least: int, greatest: int) -> bool:
    return value.isascii() and value.isdigit() and least <= int(value[:20]) <= greatest


def _shape(environment: Mapping[str, str], processes: int) -> tuple[int, int] | None:
    hosts, each = environment.get("GROUP_WORLD_SIZE", ""), environment.get("LOCAL_WORLD_SIZE", "")
    if not (hosts.isdigit() and each.isdigit()) or int(hosts) * int(each) != processes:
        return None
    return int(hosts), int(each)
