#!/usr/bin/env bash
# Several processes on this machine: one for each GPU if there are GPUs, else on the CPU.
#
#   launch/local.sh [--dry_run] N MODULE [ARGUMENTS …]      as in: python -m MODULE ARGUMENTS
#   launch/local.sh 2 mlingo_jax.train --config=demo
#
# Process 0 has the terminal; the others' lines begin with their number. If one dies, the others get ten seconds to say
# so, and are killed. Signals go to all. If this launcher itself is killed (kill -9), all are told to stop, and killed
# after 30 seconds. The exit status is that of the first process that failed.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry_run ]]; then
  dry_run=true
  shift
fi
if [[ ! ${1-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
processes=$1
shift
[[ $1 == -* ]] && set -- mlingo_jax.train "$@"
python=${PYTHON:-python}

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi > /dev/null; then
    read -ra gpus <<< "$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null | tr '\n' ' ')"
  fi
fi
if ((${#gpus[@]} > 0 && ${#gpus[@]} < processes)); then
  echo "$0: $processes processes, but ${#gpus[@]} GPUs; JAX_PLATFORMS=cpu leaves them alone" >&2
  exit 2
fi

port=PORT
if ! $dry_run; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
fi

# Reads the processes' ids. The pipe ends when the launcher does, however it ends: nobody else holds it.
watch() {
  trap '' INT TERM USR1 HUP
  local pids=() pid
  while read -r pid; do
    [[ $pid != ended ]] || return 0
    pids+=("$pid")
  done
  kill -TERM "${pids[@]}" || true
  for ((i = 0; i < 30; i++)); do
    sleep 1
    kill -0 "${pids[@]}" || return 0
  done
  kill -KILL "${pids[@]}" || true
}
$dry_run || exec 9> >(watch > /dev/null 2>&1)

pids=()
# Each in a process group of its own: Ctrl-C comes here, and from here to all.
set -m
for ((i = 0; i < processes; i++)); do
  variables=("JAX_COORDINATOR_ADDRESS=localhost:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i")
  ((${#gpus[@]} == 0)) || variables+=("CUDA_VISIBLE_DEVICES=${gpus[i]}")
  command=(env "${variables[@]}" "$python" -m "$@")
  if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
  elif ((i == 0)); then
    "${command[@]}" 9>&- &
    pids+=($!)
  else
    "${command[@]}" > >(sed -u "s/^/[$i] /" >&2 9>&-) 2>&1 9>&- &
    pids+=($!)
  fi
  $dry_run || echo "${pids[i]}" >&9
done
$dry_run && exit

for signal in INT TERM USR1; do
  # shellcheck disable=SC2064 # The pids of now are meant.
  trap "kill -$signal ${pids[*]} 2> /dev/null || true" "$signal"
done

# Bash itself would tell of each process that is killed, in words of its own.
exec 3>&2 2> /dev/null
status=0 grace=10
while true; do
  left=()
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}"; then
      left+=("${pids[i]}")
    else
      ended=0
      wait "${pids[i]}" || ended=$?
      unset "pids[i]"
      ((ended == 0)) || echo "$0: process $i of $processes ended with status $ended" >&3
      ((status > 0)) || status=$ended
    fi
  done
  if ((${#left[@]} == 0)); then
    echo ended >&9
    exit "$status"
  fi
  if ((status > 0 && grace-- == 0)); then
    echo "$0: ending the other processes" >&3
    kill -KILL "${left[@]}" || true
  fi
  sleep 1 || true
done
