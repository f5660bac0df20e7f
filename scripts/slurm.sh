#!/bin/bash
# Trains on the nodes of a SLURM allocation, and resumes after its time limit.
#
#   sbatch scripts/slurm.sh --config=configs/mnist_cnn.py:bn --workdir=/shared/runs/cnn
#
# Submit it from the folder of train.py. All nodes must be able to write to the workdir.
# Options of sbatch override the settings below, for example with a process per GPU:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 scripts/slurm.sh ...
#
# All tasks of a node must see all GPUs of the node, because JAX gives the n-th GPU to
# the n-th task. Do not use --gpus-per-task, which hides the GPUs of the other tasks.

#SBATCH --job-name=bn_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SLURM sends SIGTERM two minutes before the time limit. It signals the processes, which
# save a checkpoint and exit with code 143. With "B:" it would signal only this shell.
#SBATCH --signal=TERM@120

set -u

# Largest number of times that the job is requeued because a process died. Time limits
# do not count. Each death adds a line to a file in the folder of the job's output.
max_failures=5
failures="slurm-$SLURM_JOB_ID.failures"

# Since SLURM 22.05, srun does not take --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# train.py detects SLURM. If a process fails, srun does not kill the others: they may
# need time to save a checkpoint, and end within seconds anyway.
srun --kill-on-bad-exit=0 python train.py "$@"
code=$?

# srun returns the highest exit code of all tasks.
case $code in
    143) # SIGTERM stopped the run after it saved a checkpoint.
        scontrol requeue "$SLURM_JOB_ID" ;;
    # A process died. The others exit with 3, or with 134 if process 0 died. 137 is the
    # code of a process that was killed by SIGKILL.
    3 | 134 | 137)
        echo "$(date) code $code" >> "$failures"
        if [ "$(wc -l < "$failures")" -le "$max_failures" ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi ;;
esac
exit $code
