#!/usr/bin/env bash
#SBATCH --job-name=fastdecode
#SBATCH --array=0-7
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
# Eight tasks share the rows of a file: sbatch examples/slurm.sh prompts.jsonl drawings [options of fastdecode run]
# Each writes a folder of its own, drawings/shard-1-of-8 and so on. Submitted again, or requeued, they go on.
set -euo pipefail

rows=$1 folder=$2
shift 2
exec fastdecode run --input "$rows" -o "$folder" \
    --shard "$((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT" "$@"
