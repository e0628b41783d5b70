# CPU:  docker build --build-arg VERSION=$(git describe --tags) -t steepest .
# CUDA: docker build --build-arg EXTRAS=cuda,ray -t steepest:cuda .
FROM python:3.12-slim

# Extras of setup.py, comma-separated: cuda, tpu, ray, buckets, harness …
ARG EXTRAS=ray
# The image has no git, so the version is told.
ARG VERSION=0.0.0

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION}

# What the pins ask for, in a layer that changes with them alone.
WORKDIR /opt/steepest
COPY setup.py pyproject.toml README.md constraints.txt ./
RUN mkdir experiments models optimizers data training tuning eval report launch \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && pip uninstall --yes steepest

COPY . .
RUN pip install --no-deps . && useradd --create-home --home-dir /runs steepest

USER steepest
WORKDIR /runs
CMD ["steepest-study", "--config=experiments/quickstart.py", "--workdir=quickstart"]
