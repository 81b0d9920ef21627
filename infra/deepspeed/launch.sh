#!/usr/bin/env bash
# Pre-train on the nodes of a hostfile, with DeepSpeed's launcher.
#
#   infra/deepspeed/launch.sh RECIPE [arguments of training.pretrain]
#       from one node, which reaches the others by pdsh over ssh
#   MASTER_ADDR=... infra/deepspeed/launch.sh --node N RECIPE [arguments of training.pretrain]
#       on node N itself (0 is the hostfile's first), for schedulers that start every node; no ssh
#
# HOSTFILE (default: hostfile next to this script), MASTER_ADDR (the first node's address) and MASTER_PORT may be set.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
hostfile=${HOSTFILE:-$here/hostfile}
port=${MASTER_PORT:-29500}

fail() {
  echo "error: $1" >&2
  exit 2
}

node=
if [[ ${1:-} == --node ]]; then
  node=${2:-}
  [[ $node =~ ^[0-9]+$ ]] || fail "--node '$node': give the node's number, 0 for the first line of $hostfile"
  shift 2
fi
[[ $# -ge 1 ]] || fail "no recipe; write: launch.sh [--node N] RECIPE [arguments of training.pretrain]"
# Without a hostfile DeepSpeed would silently train on this node only.
[[ -f $hostfile ]] || fail "$hostfile: no such hostfile; copy hostfile.example there, or set HOSTFILE"
command -v deepspeed > /dev/null || fail "deepspeed is not on PATH; activate the virtual environment (.venv/bin)"

options=(--hostfile "$hostfile" --master_port "$port")
if [[ -n $node ]]; then
  options+=(--no_ssh --node_rank "$node" --master_addr "${MASTER_ADDR:?set it to the address of the first node}")
elif [[ -n ${MASTER_ADDR:-} ]]; then
  options+=(--master_addr "$MASTER_ADDR")
fi

cd "$here/../.."
exec deepspeed "${options[@]}" --module training.pretrain "$@"
