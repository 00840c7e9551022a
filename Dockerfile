# docker build --build-arg DEVICE=cpu --build-arg TORCH_INDEX=URL -t chroma-mesh:0.1.0-cpu .    every service, models on a
# CPU; URL is PyTorch's index of CPU builds, as its page "Get started" has it, without which the image is 5 GB larger
# docker build --build-arg DEVICE=cuda -t chroma-mesh:0.1.0-cuda .     every service, models on a card
# docker run chroma-mesh:0.1.0-cpu services.gateway --help
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS dependencies
ARG DEVICE=cpu
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt ./
COPY k8s/image k8s/image
RUN k8s/image/install.sh dependencies /opt "$DEVICE"

FROM dependencies AS mesh
COPY README.md ./
COPY protos protos
COPY services services
COPY client client
COPY mini mini
RUN k8s/image/install.sh mesh /opt

# What is large and seldom changes lies below what is small and does; no compiler and no pip of ours is in either.
FROM python:${PYTHON}
RUN useradd --no-log-init --uid 10001 --user-group --create-home chroma
COPY --from=dependencies /opt/dependencies /opt/dependencies
COPY --from=mesh /opt/mesh /opt/mesh
# What is compiled at run time is kept below HOME: a volume, where the root file system is read-only.
ENV PATH=/opt/mesh/bin:/opt/dependencies/bin:$PATH \
    HOME=/home/chroma \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/chroma
ENTRYPOINT ["/opt/dependencies/bin/python", "-P", "-m"]
