# Two small images from one build: `api` serves a bundle, `mlflow` keeps runs on PostgreSQL. Neither runs as root.
ARG PYTHON=python:3.11.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY octray octray
COPY pipeline pipeline
COPY services services
COPY configs configs
COPY data_catalog data_catalog
# PyTorch's own index has builds without CUDA; serving does not import torch, the command's other subcommands do.
RUN /venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt .

FROM build AS build-mlflow
RUN /venv/bin/pip install psycopg2-binary==2.9.13

FROM ${PYTHON} AS base
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --create-home octray
USER 10001:10001
WORKDIR /home/octray

FROM base AS mlflow
COPY --from=build-mlflow /venv /venv
USER root
RUN install -d -o 10001 -g 10001 /artifacts
USER 10001:10001
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]

FROM base AS api
COPY --from=build /venv /venv
USER root
RUN install -d -o 10001 -g 10001 /uploads
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["octray", "serve", "--bundle", "/bundle", "--host", "0.0.0.0", "--port", "8000"]
