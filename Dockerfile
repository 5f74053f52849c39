# The server's images, one a target:
#
#   cpu    the server, on processors
#   cuda   the server, on NVIDIA GPUs
#   ui     the page of model/ui: no model, no torch
#
#   make image TARGET=cpu     # or: docker build --target cpu --tag qwen3-vl-server:cpu .
#   docker run --rm --read-only --tmpfs /tmp -p 8080:8080 -p 8081:8081 qwen3-vl-server:cpu
#
# PyPI's torch for Linux brings CUDA's libraries along, so no target needs one of NVIDIA's base images;
# the driver is the host's. Processors have no use for them: for a small `cpu` image name the index of torch's CPU
# wheels, which torch's installation page shows: --build-arg TORCH_INDEX=https://…
#
# An index of your own: --secret id=pip,src=pip.conf is read while building and kept in no layer.

# A release names the digest as well: --build-arg BASE_IMAGE=…@sha256:…
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

# Layers come in the order in which they change: system, requirements, the project.
FROM ${BASE_IMAGE} AS base
RUN apt-get update --quiet=2 \
 && apt-get install --quiet=2 --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin qwen3-vl \
 && python3 -m venv --without-pip /opt/venv
# The root may be read-only: caches of the hub and of Triton go to the home folder.
ENV HOME=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"

# The compiler, which no image keeps but `cuda`.
FROM base AS compiler
RUN apt-get update --quiet=2 \
 && apt-get install --quiet=2 --yes --no-install-recommends gcc libc6-dev libpython3-dev

# What the project requires and nothing else of pyproject.toml: its version must not renew the largest layer.
FROM base AS requirements
COPY pyproject.toml /
RUN python3 -c 'import tomllib; \
project = tomllib.load(open("/pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
print(*project["dependencies"], *extras["redis"], *extras["structured"], sep="\n")' > /requirements.txt

# The project's wheel, its kernels compiled, as /opt/venv will have it.
FROM compiler AS project
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY model model
# setuptools goes on without the kernels where they do not compile; an image must not.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /pip \
 && /pip/bin/pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python3 -m zipfile --list /wheels/*.whl | grep --quiet '_cpu_kernels.*\.so' \
 && /pip/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --no-index --prefix /project /wheels/*.whl

# The page without the server: its requirements forbid the server's.
FROM base AS page
COPY model/__init__.py /page/model/
COPY model/ui /page/model/ui
RUN python3 -m compileall -q /page

FROM base AS server
ARG TORCH_INDEX=
COPY --from=requirements /requirements.txt /opt/venv/
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /tmp/pip \
 && install="/tmp/pip/bin/pip --python /opt/venv/bin/python install --quiet --cache-dir /var/cache/pip --only-binary :all:" \
 && if [ -n "$TORCH_INDEX" ]; then $install --index-url "$TORCH_INDEX" "$(grep '^torch[<>=]' /opt/venv/requirements.txt)"; fi \
 && $install --requirement /opt/venv/requirements.txt \
 && rm -r /tmp/pip
EXPOSE 8080 8081
# Ready, not merely alive: what waits for this container waits for a model, and a large one takes minutes to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["/usr/bin/python3", "-IS", "-c", \
  "import os, urllib.request as http; http.urlopen('http://127.0.0.1:' + os.environ.get('QVL_SERVER__HTTP_PORT', '8080') + '/health', timeout=4)"]
# What follows the image's name, as KServe's args do, are flags of the server.
ENTRYPOINT ["/opt/venv/bin/python", "-m", "model"]
LABEL org.opencontainers.image.title="qwen3-vl-server" \
      org.opencontainers.image.description="A KServe-native model server for Qwen3-VL"

FROM server AS cuda
# Triton compiles its binding of the driver where it finds one; without a compiler plain torch would do its work, slower.
RUN apt-get update --quiet=2 \
 && apt-get install --quiet=2 --yes --no-install-recommends gcc libc6-dev libpython3-dev \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=project /project /opt/venv
USER 10001:10001
ARG VERSION= REVISION= SOURCE=
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM base AS ui
COPY model/ui/requirements.txt /opt/venv/
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/venv/bin/python install --quiet --cache-dir /var/cache/pip --only-binary :all: \
      --requirement /opt/venv/requirements.txt \
 && rm -r /tmp/pip
ENV PYTHONPATH=/opt/page
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m --retries=3 CMD ["/usr/bin/python3", "-IS", "-c", \
  "import os, urllib.request as http; http.urlopen('http://127.0.0.1:' + os.environ.get('QWEN3VL_UI_PORT', '7860') + '/health', timeout=4)"]
ENTRYPOINT ["/opt/venv/bin/python", "-m", "model.ui"]
COPY --from=page /page /opt/page
USER 10001:10001
ARG VERSION= REVISION= SOURCE=
LABEL org.opencontainers.image.title="qwen3-vl-ui" \
      org.opencontainers.image.description="The page of the Qwen3-VL server" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

# The last stage is what a build without --target gives.
FROM server AS cpu
COPY --from=project /project /opt/venv
USER 10001:10001
ARG VERSION= REVISION= SOURCE=
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"
