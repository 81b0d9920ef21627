# Three images, built from the repository's root: the servers of MLflow and Prefect without torch, and a Prefect worker,
# which runs every stage itself and so contains the complete project.
#
#     docker build -f infra/docker/flows.Dockerfile --target servers -t clozeworks/servers .
#     docker build -f infra/docker/flows.Dockerfile --target worker -t clozeworks/worker .
#     docker build -f infra/docker/flows.Dockerfile --target job -t clozeworks/job .
#
# `job` is the worker's image without its entry point: what CLOZEWORKS_IMAGE names for docker and kubernetes pools.
#
# Name the base by digest in your own builds: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS builder
WORKDIR /opt/clozeworks
COPY requirements.lock pyproject.toml README.md ./
COPY infra/docker/select_lock.py infra/docker/
RUN python infra/docker/select_lock.py --package uv > /tmp/uv.lock \
 && pip install --no-cache-dir --require-hashes --requirement /tmp/uv.lock

FROM builder AS servers-builder
RUN python infra/docker/select_lock.py --extra servers > /tmp/image.lock \
 && uv venv .venv \
 && uv pip sync --no-cache --compile-bytecode --python .venv/bin/python --require-hashes /tmp/image.lock
COPY infra/docker infra/docker

FROM builder AS worker-builder
RUN python infra/docker/select_lock.py --extra pipelines --extra training --extra flows > /tmp/image.lock \
 && uv venv .venv \
 && uv pip sync --no-cache --compile-bytecode --python .venv/bin/python --require-hashes /tmp/image.lock
COPY pipelines pipelines
COPY training training
COPY flows flows
RUN uv pip install --no-cache --python .venv/bin/python --no-deps --no-build-isolation --editable . \
 && .venv/bin/python -m compileall -q pipelines training flows \
 && .venv/bin/python -m pipelines.compile_loops
COPY infra/docker infra/docker

FROM ${BASE} AS base
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --create-home clozeworks \
 && install --directory --owner=clozeworks --group=clozeworks /workspace /var/lib/clozeworks
WORKDIR /opt/clozeworks
ENV PATH=/opt/clozeworks/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIRECTORY=/var/lib/clozeworks

FROM base AS servers
COPY --from=servers-builder /opt/clozeworks /opt/clozeworks
VOLUME /var/lib/clozeworks
USER 10001:10001
# MLflow's; prefect_server.sh has another port and path, which compose.yaml names.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD \
    ["python", "infra/docker/health.py", "url", "http://127.0.0.1:5000/health"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["/opt/clozeworks/infra/docker/entrypoints/mlflow.sh"]

FROM base AS worker
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY --from=worker-builder /opt/clozeworks /opt/clozeworks
ENV TORCH_EXTENSIONS_DIR=/var/lib/clozeworks/torch_extensions \
    CLOZEWORKS_HOME=/opt/clozeworks
USER 10001:10001
RUN python -m training.build_ops
VOLUME /workspace
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD \
    ["python", "infra/docker/health.py", "url", "http://127.0.0.1:8080/health"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/clozeworks/infra/docker/entrypoints/worker.sh"]

FROM worker AS job
USER 10001:10001
# It runs for one flow run, and the worker that started it monitors it.
HEALTHCHECK NONE
ENTRYPOINT ["/usr/bin/tini", "--"]
