#!/usr/bin/env bash
# Build the image and the Flex Template, or run one of the three jobs from it:
#
#     infra/dataflow/launch.sh build
#     infra/dataflow/launch.sh run shard_corpus gs://bucket/recipe.toml gs://bucket/runs/one [settings]
#
# Credentials are gcloud's (gcloud auth login, or GOOGLE_APPLICATION_CREDENTIALS); this script reads no secret.
#
#   PROJECT, REGION   where it runs
#   BUCKET            gs://... for the template, staged files and temporary files
#   IMAGE             such as europe-west4-docker.pkg.dev/PROJECT/clozeworks/worker:1
#   SERVICE_ACCOUNT   the workers' account; it needs Dataflow Worker and the buckets
#   MACHINE_TYPE, MAX_WORKERS, SUBNETWORK   sizes, see README.md
set -euo pipefail
cd "$(dirname "$0")/../.."
usage() { sed -n '2,14s/^# \{0,1\}//p' "infra/dataflow/launch.sh" >&2; exit 2; }
: "${PROJECT:?}" "${REGION:?such as europe-west4}" "${BUCKET:?such as gs://bucket/dataflow}" "${IMAGE:?}"
template=$BUCKET/templates/clozeworks.json

case ${1:-} in
  build)
    docker build --file infra/dataflow/Dockerfile --tag "$IMAGE" .
    docker push "$IMAGE"
    gcloud dataflow flex-template build "$template" --project "$PROJECT" --image "$IMAGE" --sdk-language PYTHON \
      --metadata-file infra/dataflow/flex_template_metadata.json
    ;;
  run)
    [[ $# -ge 4 ]] || usage
    # A delimiter other than the comma, which settings may contain.
    parameters="^|^job=$2|recipe=$3|workspace=$4|sdk_container_image=$IMAGE|sdk_location=container"
    [[ -z ${5:-} ]] || parameters+="|settings=$5"
    options=(--disable-public-ips)
    [[ -z ${SERVICE_ACCOUNT:-} ]] || options+=(--service-account-email "$SERVICE_ACCOUNT")
    [[ -z ${SUBNETWORK:-} ]] || options+=(--subnetwork "$SUBNETWORK")
    gcloud dataflow flex-template run "clozeworks-${2//_/-}-$(date +%Y%m%d-%H%M%S)" \
      --project "$PROJECT" --region "$REGION" --template-file-gcs-location "$template" \
      --staging-location "$BUCKET/staging" --temp-location "$BUCKET/temp" \
      --worker-machine-type "${MACHINE_TYPE:-n2-highmem-8}" --max-workers "${MAX_WORKERS:-20}" \
      --additional-experiments use_runner_v2 \
      --parameters "$parameters" "${options[@]}"
    ;;
  *) usage ;;
esac
