#!/bin/bash
# Predict on a large file as a job array, each task a part. The last command joins the parts.
#
#     sbatch docs/slurm/predict.sh model.onnx library.smi.gz predictions.csv
#     python predict.py --join predictions-*-of-16.csv -o predictions.csv
#
#SBATCH --job-name=predict
#SBATCH --array=1-16
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
set -e
model=$1 input=$2 out=${3:-predictions.csv}
project=${MOLECLIP:-$SLURM_SUBMIT_DIR}
source "$project/.venv/bin/activate"
python "$project/predict.py" "$model" "$input" -o "$out" --resume \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers "$SLURM_CPUS_PER_TASK"
