# syntax=docker/dockerfile:1
# Streambank in a container that runs the demo, for the CPU:
#
#     docker build --tag streambank .
#     docker run --rm --shm-size 1g --volume streambank:/data streambank
#
# With NVIDIA GPUs, on a host with the driver and the NVIDIA Container Toolkit:
#
#     docker build --build-arg DEVICE=cuda --tag streambank:cuda .
#     docker run --rm --gpus all --shm-size 1g --volume streambank:/data streambank:cuda
#
# What DEVICE changes is whether the container sees GPUs; the packages are the same, those of constraints.txt. The torch that pip
# gets is built for CUDA and runs on CPUs as well, and its CUDA libraries come as packages beside it, so no CUDA base image is
# needed. Builds of torch for the CPU alone would save 4 GB of 7, but do not load together with the torchvision that pip gets.
# More in docs/container.md.
ARG PYTHON=3.11
ARG DEVICE=cpu

# --- the packages, in a virtual environment ---------------------------------------------------------------------------------
FROM python:${PYTHON}-slim-bookworm AS packages
WORKDIR /source
RUN python -m venv /opt/streambank
ENV PATH=/opt/streambank/bin:$PATH
# First what changes seldom: the dependencies, with a distribution that has no packages yet. Changed code then costs seconds.
COPY pyproject.toml constraints.txt README.md LICENSE streambank.py ./
RUN pip install --no-cache-dir --constraint constraints.txt ".[all]"
COPY connectors connectors
COPY models models
COPY operators operators
COPY pipelines pipelines
RUN pip install --no-cache-dir --no-deps --force-reinstall . && streambank list

# --- what runs ----------------------------------------------------------------------------------------------------------------
FROM python:${PYTHON}-slim-bookworm AS runtime
# The system libraries of scripts/setup.sh. Debian keeps one version of each in a release, so a pinned one could not be built later.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 libgomp1 libusb-1.0-0 libx11-6 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 streambank \
 && install --directory --owner streambank --group streambank /data
COPY --from=packages /opt/streambank /opt/streambank
ENV PATH=/opt/streambank/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=2

FROM runtime AS cpu
ENV CUDA_VISIBLE_DEVICES=""

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

# hadolint ignore=DL3006
FROM ${DEVICE}
USER 1000
# Pipeline files, state and results; relative paths start here.
WORKDIR /data
VOLUME /data
CMD ["streambank", "demo", "mamba"]
