#!/bin/bash
#SBATCH --job-name=retro-sweep-unit-000
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --time=1440
#SBATCH --signal=USR2@120
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --output=/share/sweep/unit-000/slurm-%j.log

srun --unbuffered python -m experiments.launching.host /share/sweep/unit-000 --distributed
status=$?
if [ "$status" -eq 75 ] &&
    [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
