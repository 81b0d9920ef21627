#!/usr/bin/env bash
# One node's processes of a stage, one per GPU; the nodes find each other without ssh and without a launcher.
#
#     train.sh RECIPE [arguments of the module]
#
#   MODULE               training.pretrain (the default), training.distill or training.finetune
#   WORKSPACE            overrides the recipe's run.workspace; required for several nodes, which must share it
#                        unless it is the URI of an object store
#   NODES                number of nodes (1)
#   NODE_RANK            number of this node; else JOB_COMPLETION_INDEX, set by an indexed Job of Kubernetes; else 0
#   PROCESSES_PER_NODE   one for each GPU of a node (1)
#   MASTER_ADDR          address of node 0; required for several nodes
#   MASTER_PORT          port on node 0, for several nodes (29500)
#   STARTED_FILE         written at the start; infra/docker/health.py reads its time
#
# Exits with 0 when the stage is complete, 75 after a signal (a checkpoint is written; run it again), 2 on a user error,
# and otherwise with the exit code of the first failing process.
set -euo pipefail

interrupted=75 # EXIT_REQUEUE in pipelines/contract/errors.py, EX_TEMPFAIL
peers_grace_seconds=30
manifest_wait_seconds=900

fail() {
  echo "error: $1" >&2
  exit 2
}

whole_number() { # NAME VALUE LEAST
  [[ $2 =~ ^[0-9]{1,6}$ && $((10#$2)) -ge $3 ]] || fail "$1=$2: give a whole number of at least $3"
}

[[ $# -ge 1 ]] || fail "no recipe; write: train.sh RECIPE [arguments of the module]"
nodes=${NODES:-1} node=${NODE_RANK:-${JOB_COMPLETION_INDEX:-0}} per_node=${PROCESSES_PER_NODE:-1}
whole_number NODES "$nodes" 1
whole_number NODE_RANK "$node" 0
whole_number PROCESSES_PER_NODE "$per_node" 1
((node < nodes)) || fail "NODE_RANK=$node: nodes count from 0 and there are NODES=$nodes"
if ((nodes > 1)); then
  [[ -n ${MASTER_ADDR:-} ]] || fail "NODES=$nodes, but no MASTER_ADDR; set it to the address of node 0"
  [[ -n ${WORKSPACE:-} ]] || fail "NODES=$nodes, but no WORKSPACE; set it to the directory that all nodes share, or a URI"
fi
module=${MODULE:-training.pretrain}
case $module in
  training.pretrain) stage=pretraining ;;
  training.distill) stage=distillation ;;
  training.finetune) stage= ;;
  *) fail "MODULE=$module: use training.pretrain, training.distill or training.finetune" ;;
esac
world=$((nodes * per_node))
if ((world > 1)); then
  export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
fi
: > "${STARTED_FILE:-/tmp/training_started}"

# Every process gets the signal that this shell gets, and finishes its step. torchrun is no alternative: it turns every
# exit code into 1, and kills its processes 30 s after a signal, in the middle of a large checkpoint.
declare -A running=()
stopping=
pass_on() {
  stopping=yes
  local process
  for process in "${!running[@]}"; do
    kill -TERM "$process" 2> /dev/null || true
  done
}
trap pass_on TERM INT
pause() { # ends at once on a signal
  sleep 0.5 &
  wait $! || true
}

for ((local_rank = 0; local_rank < per_node; local_rank++)); do
  RANK=$((node * per_node + local_rank)) WORLD_SIZE=$world LOCAL_RANK=$local_rank LOCAL_WORLD_SIZE=$per_node \
    python -m "$module" "$@" ${WORKSPACE:+--workspace "$WORKSPACE"} &
  running[$!]=$local_rank
done
# A signal between two starts has reached only the first process.
[[ -z $stopping ]] || pass_on

# Poll: `wait -n` may miss a process that ends together with a signal.
code=0 deadline=
while ((${#running[@]})); do
  for process in "${!running[@]}"; do
    ! kill -0 "$process" 2> /dev/null || continue
    status=0
    wait "$process" || status=$?
    unset "running[$process]"
    # Ended by the signal before training had started: nothing is lost.
    if [[ -n $stopping ]] && ((status == 143 || status == 130)); then
      status=$interrupted
    fi
    if ((status == 0 || status == interrupted)); then
      ((code != 0)) || code=$status
    elif ((code == 0 || code == interrupted)); then
      code=$status
      # A process that waits for a dead peer ignores the first signal.
      deadline=$((SECONDS + peers_grace_seconds))
      echo "node $node: a process ended with exit code $status" >&2
      kill -TERM "${!running[@]}" 2> /dev/null || true
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline && ${#running[@]})); then
    kill -KILL "${!running[@]}" 2> /dev/null || true
  fi
  pause
done

# Node 0 still writes the model when the others are done. If it died then, all would have to resume together, so the
# others stay until the stage is complete.
manifest=${WORKSPACE:-}/$stage/manifest.json
give_up=$((SECONDS + manifest_wait_seconds))
while ((code == 0 && node > 0)) && [[ -n $stage ]]; do
  if [[ $manifest == *://* ]]; then
    ! python infra/docker/health.py exists "$manifest" > /dev/null || break
  elif [[ -e $manifest ]]; then
    break
  fi
  if [[ -n $stopping ]] || ((SECONDS >= give_up)); then
    code=$interrupted
  fi
  pause
done
exit "$code"
