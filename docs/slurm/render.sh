#!/bin/bash
# Draw a large file as a job array, each task a part; all parts share one folder.
#
#     sbatch docs/slurm/render.sh library.smi.gz shards
#
#SBATCH --job-name=render
#SBATCH --array=1-16
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
set -e
input=$1 shards=${2:-shards}
project=${MOLECLIP:-$SLURM_SUBMIT_DIR}
source "$project/.venv/bin/activate"
python "$project/render.py" "$input" -o "$shards" --resume \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers "$SLURM_CPUS_PER_TASK"
