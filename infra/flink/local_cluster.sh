#!/usr/bin/env bash
# Start a Flink 1.16 cluster on this machine, for trials: a job manager, and task managers of one slot. It runs until it
# is stopped, and listens on loopback only:
#
#     infra/flink/local_cluster.sh
#
#   TASK_MANAGERS   number of task managers; default 2
#   SCRATCH         directory of the cluster's files; default a new one, removed at the end
#   PYTHON          this machine's Python with the package; default .venv/bin/python
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jars=$("${PYTHON:-$here/../../.venv/bin/python}" "$here/fetch_jars.py")
scratch=${SCRATCH:-$(mktemp -d)}
processes=()
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap - EXIT
  kill "${processes[@]}" 2>/dev/null || true
  wait || true
  [[ -n ${SCRATCH:-} ]] || rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
start() {
  java "@$here/java.options" "-Djava.io.tmpdir=$scratch" "-Xmx$1" -cp "$jars/*" "$2" --configDir "$here" &
  processes+=($!)
}
start 512m org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint
for ((number = 0; number < ${TASK_MANAGERS:-2}; number++)); do
  start 512m org.apache.flink.runtime.taskexecutor.TaskManagerRunner
done
# A cluster that lacks a part is none.
wait -n
echo "error: a process of the cluster ended; its log is above" >&2
exit 1
