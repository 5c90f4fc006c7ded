#!/bin/bash
# Pretrain on several nodes. Each node copies the drawings to its own disk; the checkpoint lies
# on the shared one. Submitted again, or requeued, the job goes on from its checkpoint.
#
#     sbatch docs/slurm/pretrain.sh --init ViT-B-16.pt --batch 1024 --epochs 4
#
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -e
project=${MOLECLIP:-$SLURM_SUBMIT_DIR}
disk=${TMPDIR:-/tmp}/moleclip-$SLURM_JOB_ID
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
source "$project/.venv/bin/activate"
export OMP_NUM_THREADS=4
srun mkdir -p "$disk"
srun cp -rL shards labels.npz "$disk"
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:29500" --rdzv-id="$SLURM_JOB_ID" \
    "$project/pretrain.py" --shards "$disk/shards" --labels "$disk/labels.npz" --resume "$@"
