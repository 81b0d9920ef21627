#!/usr/bin/env bash
# Start Beam's job server for a Flink 1.16 cluster; it runs until it is stopped:
#
#     FLINK_MASTER=head:8081 infra/flink/job_server.sh
#
# It listens on every interface and runs any command that it receives: keep its ports in a closed network.
#
#   FLINK_MASTER   host:port of the cluster's REST interface
#   JOB_HOST       its address for jobs that are submitted; default 127.0.0.1
#   JOB_PORT       for jobs; default 8099, and 8098 for their files (ARTIFACT_PORT)
#   ARTIFACTS      directory of the jobs' files; default below the system's temporary directory
#   PYTHON         this machine's Python with the package; default .venv/bin/python
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${FLINK_MASTER:?such as head:8081}"
jars=$("${PYTHON:-$here/../../.venv/bin/python}" "$here/fetch_jars.py")
exec java "@$here/java.options" -Xmx1g -cp "$jars/*" org.apache.beam.runners.flink.FlinkJobServerDriver \
  --flink-master "$FLINK_MASTER" --job-host "${JOB_HOST:-127.0.0.1}" --job-port "${JOB_PORT:-8099}" \
  --artifact-port "${ARTIFACT_PORT:-8098}" --expansion-port -1 \
  --artifacts-dir "${ARTIFACTS:-${TMPDIR:-/tmp}/clozeworks-flink-artifacts}"
