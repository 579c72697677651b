# The image of a job, for BuildKit (docker build) and Buildah (podman build):
#
#   docker build --target cpu  -t mlip-job:cpu .
#   docker build --target cuda -t mlip-job:cuda .
#
# docs/images.md has the rest: proxies and private indices, sizes, what was tested.

# Debian 12, or an image based on it; an existing python3.11 is used, so python:3.11-slim-bookworm
# works too. Pinned by the digest of the tag's multi-platform index. To update it, take the digest
# that one of these prints for the tag:
#   docker buildx imagetools inspect debian:bookworm-slim
#   skopeo inspect --format '{{.Digest}}' docker://docker.io/library/debian:bookworm-slim
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241

# ---- the base of all stages
FROM ${BASE} AS base
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates tini $(command -v python3.11 >/dev/null || echo python3.11) \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*

# ---- pip and the build backend, which no image keeps
FROM base AS pip
RUN python3.11 -c 'import ensurepip' 2>/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3.11-venv; }
COPY tools/image/install requirements/build.txt /build/
RUN --mount=type=secret,id=pip,target=/mnt/pip.conf --mount=type=secret,id=ca,target=/mnt/ca.crt \
    /build/install tools /build/build.txt

# ---- the trainer's environments
FROM pip AS trainer-cpu
COPY requirements/trainer-cpu.txt /build/
RUN --mount=type=secret,id=pip,target=/mnt/pip.conf --mount=type=secret,id=ca,target=/mnt/ca.crt \
    /build/install lock /build/trainer-cpu.txt

FROM pip AS trainer-cuda
COPY requirements/trainer-gpu.txt /build/
RUN --mount=type=secret,id=pip,target=/mnt/pip.conf --mount=type=secret,id=ca,target=/mnt/ca.crt \
    /build/install lock /build/trainer-gpu.txt

# ---- mlip-job itself, as files to copy into the trainer's environment
FROM pip AS package
COPY pyproject.toml README.md LICENSE /build/source/
COPY job /build/source/job
RUN --mount=type=secret,id=pip,target=/mnt/pip.conf --mount=type=secret,id=ca,target=/mnt/ca.crt \
    /build/install package /build/source /package
COPY tools/image/mlip-job-self-test /package/opt/mlip-job/bin/

# ---- what the images have in common
FROM base AS job
# A number, so that Kubernetes can check that it is not root. The name is for programs that ask.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
        mlip-job \
    && rm -rf /var/log/* \
    && install -d -o 10001 -g 10001 /work
# Caches and scratch files go to /tmp, so that the rest can be read-only.
ENV PATH=/opt/mlip-job/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /work
# tini reaps orphaned processes, forwards signals and exits with the job's code.
ENTRYPOINT ["tini", "--", "mlip-job"]
CMD ["--help"]
LABEL org.opencontainers.image.title="mlip-job" \
      org.opencontainers.image.description="Trains, versions and publishes ACE interatomic potentials, one generation per job" \
      org.opencontainers.image.licenses="BSD-3-Clause AND LicenseRef-Academic-Software-License" \
      mlip-job.notice="Contains python-ace and tensorpotential, which are licensed for academic, non-commercial use only; see their licenses/ in /opt/mlip-job/lib/python3.11/site-packages"

# ---- the images: a layer for the trainer, one for mlip-job
FROM job AS cuda
# The NVIDIA runtime mounts the driver of the node; CUDA itself comes with the lock.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=trainer-cuda /opt/mlip-job /opt/mlip-job
COPY --from=package /package /
USER 10001:10001
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM job AS cpu
COPY --from=trainer-cpu /opt/mlip-job /opt/mlip-job
COPY --from=package /package /
USER 10001:10001
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
