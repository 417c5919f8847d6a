# Ray and the training room: head and workers of every RayJob run this.
FROM python:3.12.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/sluice
WORKDIR /src
# What others wrote changes seldom: it is a layer of its own, made from the lock file alone.
COPY pyproject.toml uv.lock ./
COPY contracts/pyproject.toml contracts/
COPY storage/pyproject.toml storage/
COPY operator/pyproject.toml operator/
COPY serving/pyproject.toml serving/
COPY training/pyproject.toml training/
COPY edge_agent/pyproject.toml edge_agent/
COPY devcluster/pyproject.toml devcluster/
RUN uv sync --frozen --no-dev --no-install-workspace --package sluice-training
COPY contracts contracts
COPY storage storage
COPY training training
RUN uv sync --frozen --no-dev --no-editable --package sluice-training

FROM python:3.12.12-slim-bookworm
LABEL org.opencontainers.image.title="sluice-trainer" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sluice /opt/sluice
COPY LICENSE /usr/share/licenses/sluice/LICENSE
ENV PATH=/opt/sluice/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["sluice-train"]
