# CPU:  git archive HEAD | docker build -t steepest -
# CUDA: git archive HEAD | docker build --build-arg EXTRAS=cuda,ray -t steepest:cuda -
# The archive has the version (.git_archival.txt); docs/launching.md says how to use it.
FROM python:3.12-slim-trixie

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# Extras of setup.py, comma-separated: cuda, tpu, ray, buckets, harness …
ARG EXTRAS=ray

# Dependencies first: this layer changes only with the pins.
WORKDIR /opt/steepest
COPY setup.py pyproject.toml constraints.txt ./
RUN touch README.md \
    && mkdir experiments models optimizers data training tuning eval report launch \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && pip uninstall --yes steepest

COPY . .
RUN pip install --no-deps . \
    && useradd --uid 1000 --create-home --home-dir /runs steepest

# SkyPilot installs its own tools as root: --build-arg RUN_AS=0. A number, since
# Kubernetes cannot tell whether a name is root's.
ARG RUN_AS=1000
USER ${RUN_AS}
WORKDIR /runs
CMD ["steepest-study", "--config=experiments/quickstart.py", "--workdir=quickstart"]
