#!/usr/bin/env bash
# Run one of the three jobs on a Spark 3.5 cluster (Scala 2.12):
#
#     SPARK_MASTER=spark://head:7077 infra/spark/submit.sh shard_corpus recipe.toml --workspace=hdfs://head/runs/one
#
# Builds a jar of the job on this machine and passes it to spark-submit. Arguments after the recipe go to the job.
#
#   SPARK_HOME     Spark's directory; spark-submit is its bin/spark-submit
#   SPARK_MASTER   spark://host:port, yarn, k8s://..., as spark-submit takes it
#   WORKER         the Python worker on every node; default /opt/clozeworks/bin/clozeworks-worker
#   PYTHON         this machine's Python with the package; default .venv/bin/python
#   EXECUTOR_MEMORY, EXECUTOR_OVERHEAD   of an executor, which has one core; see README.md
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
job=$1 recipe=$2
shift 2
: "${SPARK_HOME:?the directory of Spark 3.5}" "${SPARK_MASTER:?such as spark://head:7077}"
worker=${WORKER:-/opt/clozeworks/bin/clozeworks-worker}
python=${PYTHON:-$here/../../.venv/bin/python}

# Jars that Spark has under the same name are not replaced.
jars=$("$python" "$here/local_spark.py" --cluster-jars "$SPARK_HOME/jars")

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" "$here/local_spark.py" --outside -- "$python" -m "pipelines.$job" "$recipe" "$@" \
  "--output_executable_path=$scratch/$job.jar" \
  "--environment_config={\"command\": \"$worker\"}" \
  --environment_cache_millis=0
# A complete stage makes no jar.
[[ -e $scratch/$job.jar ]] || exit 0

"$SPARK_HOME/bin/spark-submit" \
  --master "$SPARK_MASTER" \
  --class org.apache.beam.runners.spark.SparkPipelineRunner \
  --name "clozeworks-$job" \
  --jars "$jars" \
  --conf spark.executor.cores=1 \
  --conf spark.executor.memory="${EXECUTOR_MEMORY:-1g}" \
  --conf spark.executor.memoryOverhead="${EXECUTOR_OVERHEAD:-4g}" \
  --conf spark.task.maxFailures=4 \
  --conf spark.speculation=false \
  "$scratch/$job.jar"
