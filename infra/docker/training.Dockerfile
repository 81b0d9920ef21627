# Pre-training on the GPUs of one node, or of several; built from the repository's root:
#
#     docker build -f infra/docker/training.Dockerfile -t clozeworks/training .
#     docker run --rm --gpus all --shm-size 16g --stop-timeout 300 -v /shared/run:/workspace \
#         -e PROCESSES_PER_NODE=8 clozeworks/training flows/recipes/bert-base.toml
#
# For another stage: --entrypoint python ... -m training.finetune RECIPE. CUDA comes with torch's wheels; the host
# brings the driver. Name the base by digest in your own builds: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS builder
WORKDIR /opt/clozeworks
COPY requirements.lock pyproject.toml README.md ./
COPY infra/docker/select_lock.py infra/docker/
RUN python infra/docker/select_lock.py --package uv > /tmp/uv.lock \
 && pip install --no-cache-dir --require-hashes --requirement /tmp/uv.lock \
 && python infra/docker/select_lock.py --extra training --package setuptools > /tmp/image.lock \
 && uv venv .venv \
 && uv pip sync --no-cache --compile-bytecode --python .venv/bin/python --require-hashes /tmp/image.lock
COPY pipelines pipelines
COPY training training
RUN uv pip install --no-cache --python .venv/bin/python --no-deps --no-build-isolation --editable . \
 && .venv/bin/python -m compileall -q pipelines training
COPY flows/recipes flows/recipes
COPY infra/docker infra/docker

FROM ${BASE}
# The compiler stays: torch.compile (Triton) builds its launchers with it while training.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --create-home clozeworks \
 && install --directory --owner=clozeworks --group=clozeworks /workspace /var/lib/clozeworks
COPY --from=builder /opt/clozeworks /opt/clozeworks
WORKDIR /opt/clozeworks
ENV PATH=/opt/clozeworks/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCH_EXTENSIONS_DIR=/var/lib/clozeworks/torch_extensions \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1 \
    WORKSPACE=/workspace \
    STARTED_FILE=/var/lib/clozeworks/training_started
USER 10001:10001
# Build as the user who will load it: the loader takes a lock next to it.
RUN python -m training.build_ops
VOLUME /workspace
HEALTHCHECK --interval=60s --timeout=10s --start-period=300s CMD \
    ["python", "infra/docker/health.py", "progress", "/workspace/pretraining.building/metrics.jsonl", "/var/lib/clozeworks/training_started"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/clozeworks/infra/docker/entrypoints/train.sh"]
