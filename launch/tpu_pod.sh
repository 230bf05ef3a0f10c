#!/usr/bin/env bash
# The same command on every worker of a TPU VM slice.
#
#   launch/tpu_pod.sh [--dry_run] TPU_NAME ZONE MODULE [ARGUMENTS …]      as in: python -m MODULE ARGUMENTS
#   launch/tpu_pod.sh my-v5e-64 us-west4-a mlingo_jax.train --config=pretrain --config.workdir=/mnt/runs/pretrain
#
# Every worker has mlingo_jax installed ('.[tpu]'), in its login shell's Python or the one that PYTHON names, and the
# same folders under the same names: a bucket or a file server, mounted. The exit status is gcloud's.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry_run ]]; then
  dry_run=true
  shift
fi
if (($# < 3)); then
  sed -n '4,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
[[ $1 == -* ]] && set -- mlingo_jax.train "$@"

# auto: JAX asks the slice's metadata for the other workers.
remote=$(printf '%q ' env JAX_NUM_PROCESSES=auto "${PYTHON:-python3}" -m "$@")
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$remote")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
