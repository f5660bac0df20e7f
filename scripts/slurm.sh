#!/bin/bash
# Trains on the nodes of a SLURM allocation, and goes on after a time limit.
#
#   sbatch scripts/slurm.sh --config=configs/mnist_cnn.py:bn --workdir=/shared/runs/cnn
#
# Submit it in the folder of train.py. The workdir lies where all nodes see it. What is
# set here is changed on sbatch's command line, as with GPUs, one process each:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 scripts/slurm.sh ...
#
# All tasks of a node must see all of its GPUs, since JAX gives the n-th to the n-th:
# so no --gpus-per-task, which hides the others.

#SBATCH --job-name=bn_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, to the processes and not to this shell ("B:"):
# they save a checkpoint and end with 143.
#SBATCH --signal=TERM@120

set -u

# How often the job is begun again after a process has died; time limits do not count.
# Each death is a line of a file beside the job's output.
max_failures=5
failures="slurm-$SLURM_JOB_ID.failures"

# srun has stopped to take this from sbatch in SLURM 22.05.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# train.py recognizes SLURM. One process that ends with an error does not take the
# others with it: those that save need the time, and all end within seconds.
srun --kill-on-bad-exit=0 python train.py "$@"
code=$?

# srun returns the highest code of all tasks.
case $code in
    143) # Ended by SIGTERM, and saved.
        scontrol requeue "$SLURM_JOB_ID" ;;
    3 | 134 | 137) # A process died: 3 from the others, 134 if it was process 0.
        echo "$(date) code $code" >> "$failures"
        if [ "$(wc -l < "$failures")" -le "$max_failures" ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi ;;
esac
exit $code
