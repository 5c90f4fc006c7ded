#!/bin/bash
# Finetune on several nodes. Table and results lie on the shared disk.
#
#     sbatch docs/slurm/finetune.sh --data dhbd.csv --seeds 1,2,3
#
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
set -e
project=${MOLECLIP:-$SLURM_SUBMIT_DIR}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
source "$project/.venv/bin/activate"
export OMP_NUM_THREADS=4
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:29500" --rdzv-id="$SLURM_JOB_ID" \
    "$project/finetune.py" "$@"
