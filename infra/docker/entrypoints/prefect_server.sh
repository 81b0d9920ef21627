#!/usr/bin/env bash
# Prefect's server: SQLite, or Postgres by settings.
#
#   DATA_DIRECTORY                           Prefect's home (/var/lib/clozeworks)
#   PREFECT_SERVER_DATABASE_CONNECTION_URL   such as postgresql+asyncpg://prefect@postgres/prefect; default SQLite
#   PGPASSWORD                               Postgres's password; must not be in the URL
#   PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT   127.0.0.1, 4200
#   PREFECT_SERVER_API_AUTH_STRING           user:password; required if it listens beyond loopback
set -euo pipefail

export PREFECT_SERVER_API_HOST=${PREFECT_SERVER_API_HOST:-127.0.0.1}
if [[ $PREFECT_SERVER_API_HOST != 127.0.0.1 && $PREFECT_SERVER_API_HOST != localhost && -z ${PREFECT_SERVER_API_AUTH_STRING:-} ]]; then
  echo "error: PREFECT_SERVER_API_HOST=$PREFECT_SERVER_API_HOST: anyone who reaches this server can run code on its workers; set PREFECT_SERVER_API_AUTH_STRING" >&2
  exit 2
fi
if [[ ${PREFECT_SERVER_DATABASE_CONNECTION_URL:-} =~ ://[^/@]*:[^/@]*@ ]]; then
  echo "error: PREFECT_SERVER_DATABASE_CONNECTION_URL holds a password; set PGPASSWORD instead" >&2
  exit 2
fi
export PREFECT_HOME=${DATA_DIRECTORY:-/var/lib/clozeworks}/prefect
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
exec prefect server start "$@"
