#!/usr/bin/env bash
# A Prefect worker that runs flows as child processes, one at a time: each uses the complete machine.
#
#   PREFECT_API_URL           the server, such as http://prefect:4200/api
#   PREFECT_API_AUTH_STRING   user:password, if the server requires it
#   PREFECT_POOL              work pool (clozeworks-cpu); created if it does not exist
#   MLFLOW_TRACKING_URI       such as http://mlflow:5000
#   PREFECT_WORKER_QUERY_SECONDS   between two questions for new runs: 2 (Prefect's own default is 10)
#   PREFECT_WORKER_WEBSERVER_HOST, PREFECT_WORKER_WEBSERVER_PORT   of the health check: 127.0.0.1, 8080
set -euo pipefail

[[ -n ${PREFECT_API_URL:-} ]] || { echo "error: PREFECT_API_URL is not set; a worker needs a server" >&2; exit 2; }
# Prefect's own default is every interface.
export PREFECT_WORKER_WEBSERVER_HOST=${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}
# A part of a run would wait for half of it before it starts.
export PREFECT_WORKER_QUERY_SECONDS=${PREFECT_WORKER_QUERY_SECONDS:-2}
export PREFECT_SERVER_ANALYTICS_ENABLED=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
exec prefect worker start --pool "${PREFECT_POOL:-clozeworks-cpu}" --type process --limit 1 --install-policy never \
  --with-healthcheck "$@"
