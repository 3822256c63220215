#!/usr/bin/env bash
# bash scripts/launch_slurm.sh
#
# Run on the login node, from a folder that all nodes share, when the variables below are set. Edits a data set as an
# array of tasks, each of which takes one shard and enters its results in a ledger of its own; then a small job merges
# them. A task that runs out of time or is preempted is queued again and resumes where it stopped. To change the number
# of shards, change --array, which must count from 0; the whole array can be submitted again at any time.
#SBATCH --job-name=uam
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=uam-%A_%a.log
set -euo pipefail

environment=$HOME/uam              # where `python -m venv` and `pip install '.[cuda12]'` put uam
manifest=manifest.jsonl
out=edited                         # on a file system that all nodes share
options=(--model stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype bfloat16)

if [[ -z ${SLURM_ARRAY_TASK_ID-} ]]; then # on the login node
  job=$(sbatch --parsable "${BASH_SOURCE[0]}")
  job=${job%%;*} # a cluster's name may follow
  # afterany: the merge also lists the results that a failed task did not make.
  merge=$(printf '%q ' "$environment/bin/uam" merge "$out")
  sbatch --dependency="afterany:$job" --job-name=uam-merge --output=uam-merge-%j.log --time=01:00:00 --mem=8G \
    --wrap "$merge"
  echo "Array $job submitted; its logs are uam-${job}_*.log"
  exit
fi

# The signal goes to what srun starts, and uam then ends after the batch in hand, with 143. The shell has to live on.
trap : TERM
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" "$environment/bin/uam" batch "$manifest" --out "$out" "${options[@]}" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" || status=$?

# A preempted task is queued again by SLURM itself, and a cancelled one must not be: neither is still RUNNING.
if ((status == 143)) && [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
