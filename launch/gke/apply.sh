#!/usr/bin/env bash
# A JobSet on a TPU slice of a GKE cluster, from jobset.yaml beside this file.
#
#   launch/gke/apply.sh [--dry_run] NAME IMAGE MODULE [ARGUMENTS …]      as in: python -m MODULE ARGUMENTS
#   launch/gke/apply.sh pretrain REGISTRY/mlingo_jax:tpu mlingo_jax.train --config=pretrain --config.workdir=/shared/runs/pretrain
#
# The cluster has the JobSet controller, a node pool of such a slice, and the claim mlingo-shared, mounted at /shared.
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
name=$1 image=$2
shift 2
[[ $1 == -* ]] && set -- mlingo_jax.train "$@"

# A JSON list is a YAML list.
arguments=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
manifest=$(< "$(dirname "$0")/jobset.yaml")
manifest=${manifest/name: NAME/"name: $name"}
manifest=${manifest/image: IMAGE/"image: $image"}
manifest=${manifest/args: ARGUMENTS/"args: $arguments"}
if $dry_run; then
  echo "kubectl apply -f - <<'END'"
  echo "$manifest"
  echo END
else
  kubectl apply -f - <<< "$manifest"
fi
