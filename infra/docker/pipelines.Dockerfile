# The three Beam jobs and Beam's Python worker, without torch; built from the repository's root:
#
#     docker build -f infra/docker/pipelines.Dockerfile -t clozeworks/pipelines .
#     docker run --rm -v "$PWD/corpus:/corpus:ro" -v clozeworks:/workspace clozeworks/pipelines \
#         shard_corpus /corpus/recipe.toml
#
# Name the base by digest in your own builds: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS builder
WORKDIR /opt/clozeworks
COPY requirements.lock pyproject.toml README.md ./
COPY infra/docker/select_lock.py infra/docker/
RUN python infra/docker/select_lock.py --package uv > /tmp/uv.lock \
 && pip install --no-cache-dir --require-hashes --requirement /tmp/uv.lock \
 && python infra/docker/select_lock.py --extra pipelines --package setuptools > /tmp/image.lock \
 && uv venv .venv \
 && uv pip sync --no-cache --compile-bytecode --python .venv/bin/python --require-hashes /tmp/image.lock
COPY pipelines pipelines
RUN uv pip install --no-cache --python .venv/bin/python --no-deps --no-build-isolation --editable . \
 && .venv/bin/python -m compileall -q pipelines \
 && .venv/bin/python -m pipelines.compile_loops
COPY infra/docker infra/docker

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --create-home clozeworks \
 && install --directory --owner=clozeworks --group=clozeworks /workspace
COPY --from=builder /opt/clozeworks /opt/clozeworks
WORKDIR /opt/clozeworks
ENV PATH=/opt/clozeworks/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WORKSPACE=/workspace
VOLUME /workspace
USER 10001:10001
HEALTHCHECK --interval=60s --timeout=10s CMD ["python", "infra/docker/health.py", "writable", "/workspace"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/clozeworks/infra/docker/entrypoints/pipelines.sh"]
