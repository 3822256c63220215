#!/usr/bin/env bash
# bash scripts/launch_tpu_vm.sh
#
# Run where gcloud is logged in and Python 3.11 or later has pip, when the variables below are set. Asks for a TPU slice
# as a queued resource, installs this checkout on all its hosts, edits a data set on all of them, merges their results
# and gives the slice back, whatever happened. If a spot slice is taken away on the way, run it again: it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=uam-batch
project=my-project
zone=us-central1-a
accelerator=v5litepod-16
runtime=v2-alpha-tpuv5-lite        # goes with the accelerator: cloud.google.com/tpu/docs/runtimes
manifest=gs://my-bucket/manifest.jsonl
out=gs://my-bucket/edited          # all hosts write there, so their service account must be allowed to
options=(--model stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype bfloat16)

place=(--project="$project" --zone="$zone")

# on WORKER COMMAND: runs a shell command on one host, or on all.
on() {
  gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

scratch=$(mktemp -d)
created=
clean_up() {
  rm -rf "$scratch"
  if [[ $created ]]; then
    gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  fi
}
trap clean_up EXIT

python3 -m pip wheel --quiet --no-deps --wheel-dir "$scratch" .
wheel=$(basename "$scratch"/*.whl)

gcloud compute tpus queued-resources create "$name" "${place[@]}" --node-id="$name" \
  --accelerator-type="$accelerator" --runtime-version="$runtime" --spot
created=yes

state=
while [[ $state != ACTIVE ]]; do
  state=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)')
  case $state in
    ACTIVE) ;;
    FAILED | SUSPEND*)
      echo "The queued resource is $state" >&2
      exit 1
      ;;
    *)
      echo "waiting for the slice: $state"
      sleep 60
      ;;
  esac
done

gcloud compute tpus tpu-vm scp "$scratch/$wheel" "$name": "${place[@]}" --worker=all
# uv brings its own Python: that of the image may be too old.
on all "python3 -m pip install --quiet --user uv &&
  python3 -m uv venv --quiet --python 3.12 uam &&
  python3 -m uv pip install --quiet --python uam \"uam_jax[tpu] @ file://\$HOME/$wheel\" gcsfs"

on all "$(printf '%q ' uam/bin/uam batch "$manifest" --out "$out" "${options[@]}" --distributed)"
on 0 "$(printf '%q ' uam/bin/uam merge "$out")"
