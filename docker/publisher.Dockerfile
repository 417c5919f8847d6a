# Signs and lays out releases. The training room's publishing half alone: no torch, no Ray, a small target beside the keys.
FROM python:3.12.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY contracts/pyproject.toml contracts/
COPY storage/pyproject.toml storage/
COPY operator/pyproject.toml operator/
COPY serving/pyproject.toml serving/
COPY training/pyproject.toml training/
COPY edge_agent/pyproject.toml edge_agent/
COPY devcluster/pyproject.toml devcluster/
RUN uv venv /opt/sluice \
    && uv export --quiet --frozen --no-dev --no-emit-workspace --package sluice-training --output-file requirements.txt \
       --prune torch --prune ray --prune transformers --prune peft --prune xllamacpp \
    && uv pip install --python /opt/sluice --require-hashes --requirement requirements.txt
COPY contracts contracts
COPY storage storage
COPY training training
RUN uv pip install --python /opt/sluice --no-deps ./contracts ./storage ./training

FROM python:3.12.12-slim-bookworm
LABEL org.opencontainers.image.title="sluice-publisher" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sluice /opt/sluice
COPY LICENSE /usr/share/licenses/sluice/LICENSE
ENV PATH=/opt/sluice/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp DO_NOT_TRACK=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["sluice-train"]
