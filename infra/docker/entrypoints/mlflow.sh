#!/usr/bin/env bash
# MLflow's tracking server and registry: SQLite and a folder, or Postgres and an object store, by settings.
#
#   DATA_DIRECTORY                of SQLite and the folder (/var/lib/clozeworks)
#   MLFLOW_BACKEND_STORE_URI      such as postgresql+psycopg2://mlflow@postgres/mlflow; default SQLite
#   PGPASSWORD                    Postgres's password; must not be in the URI, which is logged and shown by `ps`
#   MLFLOW_ARTIFACTS_DESTINATION  such as s3://mlflow; default the folder
#   MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   of the object store
#   MLFLOW_HOST, MLFLOW_PORT      127.0.0.1, 5000
#   MLFLOW_SERVER_ALLOWED_HOSTS   host names that browsers and clients may use, if it is not loopback
#   MLFLOW_WORKERS                2
set -euo pipefail

data=${DATA_DIRECTORY:-/var/lib/clozeworks}
if [[ ${MLFLOW_BACKEND_STORE_URI:-} =~ ://[^/@]*:[^/@]*@ ]]; then
  echo "error: MLFLOW_BACKEND_STORE_URI holds a password; set PGPASSWORD instead" >&2
  exit 2
fi
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$data/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$data/mlartifacts}
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000} MLFLOW_WORKERS=${MLFLOW_WORKERS:-2}
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
exec mlflow server "$@"
