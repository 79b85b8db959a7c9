#!/usr/bin/env bash
# The target on the ranks of a Slurm job: one task is one rank. `sbatch verify.slurm.sh`; the exit status is the verdict.
#SBATCH --job-name=verify
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --time=00:20:00
set -euo pipefail
export TARGET=${TARGET:-verify_target.py:MyTarget} DEVICE=${DEVICE:-cuda}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
srun python -m verify run --target "$TARGET" --device "$DEVICE" --json "verify-$SLURM_JOB_ID.json" --html "verify-$SLURM_JOB_ID.html"
