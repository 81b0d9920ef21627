#!/usr/bin/env bash
# One of the jobs of pipelines: shard_corpus, train_vocabulary, build_examples or validate.
#
#     pipelines.sh JOB RECIPE [settings, options of Beam]
#
#   WORKSPACE   overrides the recipe's run.workspace
#
# For runners that start their workers themselves, the Python worker is clozeworks-worker, on the image's PATH.
set -euo pipefail

[[ $# -ge 1 ]] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
job=$1
shift
case $job in
  shard_corpus | train_vocabulary | build_examples) exec python -m "pipelines.$job" "$@" ${WORKSPACE:+--workspace "$WORKSPACE"} ;;
  validate) exec python -m pipelines.validate "$@" ;;
  *) echo "error: $job: no such job; use shard_corpus, train_vocabulary, build_examples or validate" >&2; exit 2 ;;
esac
