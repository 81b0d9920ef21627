#!/usr/bin/env bash
# Pre-train on the nodes of one Slurm job, without a flow:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 infra/slurm/pretrain.sbatch.sh RECIPE [arguments of training.pretrain]
#
# Two minutes before the time limit, and when Slurm preempts the job, the ranks write a checkpoint and exit with 75; the
# job then puts itself into the queue again and resumes there. Submit it in the directory of the checkout.
#
#   PYTHON   interpreter on the nodes; default .venv/bin/python
#   MODULE   default training.pretrain; training.distill works too
#SBATCH --job-name=clozeworks
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
[[ $# -ge 1 ]] || { echo "error: no recipe; write: sbatch --nodes=N --ntasks-per-node=R $0 RECIPE" >&2; exit 2; }
: "${SLURM_JOB_ID:?start this script by sbatch}" "${SLURM_NTASKS_PER_NODE:?give sbatch --ntasks-per-node, the ranks of a node}"
recipe=$1
shift

"${PYTHON:-.venv/bin/python}" -m flows.launching.slurm --ranks="$SLURM_NTASKS_PER_NODE" "${MODULE:-training.pretrain}" \
  "$recipe" "$@" --set pretraining.cluster.kind=slurm --set pretraining.cluster.nodes="$SLURM_JOB_NUM_NODES" &
ranks=$!
# Slurm signals this shell only; the first `wait` ends with the signal, the second with the ranks.
trap 'kill -TERM "$ranks"' TERM
code=0
wait "$ranks" || code=$?
if kill -0 "$ranks" 2> /dev/null; then
  code=0
  wait "$ranks" || code=$?
fi
[[ $code -ne 75 ]] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
