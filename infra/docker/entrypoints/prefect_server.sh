#!/usr/bin/env bash
# Prefect's server: SQLite, or Postgres by settings.
#
#   DATA_DIRECTORY                           Prefect's home (/var/lib/clozeworks)
#   PREFECT_SERVER_DATABASE_CONNECTION_URL   such as postgresql+asyncpg://prefect@postgres/prefect; default SQLite
#   PGPASSWORD                               Postgres's password; not a part of the URL
#   PREFECT_SERVER_API_HOST, PREFECT_SERVER_API_PORT   127.0.0.1, 4200
#   PREFECT_SERVER_API_AUTH_STRING           user:password; needed where it listens beyond loopback
set -euo pipefail

export PREFECT_SERVER_API_HOST=${PREFECT_SERVER_API_HOST:-127.0.0.1}
if [[ $PREFECT_SERVER_API_HOST != 127.0.0.1 && $PREFECT_SERVER_API_HOST != localhost && -z ${PREFECT_SERVER_API_AUTH_STRING:-} ]]; then
  echo "error: PREFECT_SERVER_API_HOST=$PREFECT_SERVER_API_HOST: whoever reaches this server may run code on its workers; set PREFECT_SERVER_API_AUTH_STRING" >&2
  exit 2
fi
if [[ ${PREFECT_SERVER_DATABASE_CONNECTION_URL:-} =~ ://[^/@]*:[^/@]*@ ]]; then
  echo "error: PREFECT_SERVER_DATABASE_CONNECTION_URL holds a password; put it into PGPASSWORD" >&2
  exit 2
fi
export PREFECT_HOME=${DATA_DIRECTORY:-/var/lib/clozeworks}/prefect
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
exec prefect server start "$@"
