#!/usr/bin/env bash
# Bring up Postgres, an object store, MLflow, Prefect and a worker on this machine: `infra/compose/up.sh [options of up]`.
#
# The first call writes infra/compose/.env, readable by its owner only, with new passwords. The databases keep those of
# their first start: if you delete the file, delete the volumes too (docker compose down --volumes).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
file=${ENV_FILE:-$here/.env}

word() { # BYTES, as letters and digits
  od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

command -v docker > /dev/null || { echo "error: docker is not on PATH; install Docker Engine with its compose plugin" >&2; exit 2; }
if [[ ! -e $file ]]; then
  umask 077
  {
    echo "POSTGRES_PASSWORD=$(word 24)"
    echo "OBJECTS_ACCESS_KEY=$(word 10)"
    echo "OBJECTS_SECRET_KEY=$(word 24)"
    echo "PREFECT_AUTH=clozeworks:$(word 24)"
  } > "$file.new"
  mv "$file.new" "$file"
  echo "passwords are in $file"
fi
exec docker compose --env-file "$file" --file "$here/../compose.yaml" up --build "$@"
