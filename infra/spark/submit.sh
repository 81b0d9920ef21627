#!/usr/bin/env bash
# Run one of the three jobs on a Spark 3.5 cluster (Scala 2.12), without a section [preprocessing] in the recipe:
#
#     SPARK_MASTER=spark://head:7077 infra/spark/submit.sh documents recipe.toml --workspace=hdfs://head/runs/one
#
# Arguments after the recipe go to the job; preprocessing.spark.* are its other settings.
#
#   SPARK_HOME     Spark's directory; without it, Spark's jars come from Maven
#   SPARK_MASTER   spark://host:port, yarn, k8s://..., as spark-submit takes it
#   WORKER         the Python worker on every node; default /opt/clozeworks/bin/clozeworks-worker
#   PYTHON         this machine's Python with the package; default .venv/bin/python
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
: "${SPARK_MASTER:?such as spark://head:7077}"
job=$1 recipe=$2
shift 2
exec "${PYTHON:-$here/../../.venv/bin/python}" -m flows.cli "$job" "$recipe" --runner=spark \
  --set "preprocessing.spark.master=\"$SPARK_MASTER\"" \
  --set "preprocessing.worker=\"${WORKER:-/opt/clozeworks/bin/clozeworks-worker}\"" "$@"
