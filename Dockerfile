# Two images from one file; a build without --target gives the edge.
#
#   docker build --target edge  --tag gatekeeper-edge .
#   docker build --target large --tag gatekeeper-large .
#
# pip's usual torch for Linux brings several GB of CUDA libraries. For a machine without a GPU, name an index that has
# the CPU build: --build-arg PIP_EXTRA_INDEX_URL=... ; PIP_INDEX_URL is passed on too, for those behind a mirror.

FROM python:3.11.16-slim-trixie AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY models models
RUN pip wheel --no-build-isolation --no-deps --wheel-dir /wheels .


FROM python:3.11.16-slim-trixie AS edge-venv
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/venv
COPY constraints.txt ./
# By itself, because it is most of the image and changes least: a change of our code leaves this layer alone.
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt torch==2.13.0
COPY --from=wheel /wheels /wheels
# Without the offline job's libraries, a quarter of the image. --build-arg EDGE_EXTRAS=[large] for a bundle of a model that
# transformers runs; an edge that misses it says so at its start.
ARG EDGE_EXTRAS=
RUN --mount=type=cache,target=/root/.cache/pip \
    set -- /wheels/*.whl && pip install --constraint constraints.txt "$1${EDGE_EXTRAS}"


FROM edge-venv AS large-venv
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The wheel again, now with what the large model stands on; by its file, so that no index is asked for our name.
RUN --mount=type=cache,target=/root/.cache/pip \
    set -- /wheels/*.whl && pip install --constraint constraints.txt "$1[large]"


FROM python:3.11.16-slim-trixie AS runtime
# A number, so that Kubernetes can see that it is not root; no home, because nothing is to be kept there.
RUN groupadd --gid 10001 gatekeeper \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent \
       --shell /usr/sbin/nologin gatekeeper \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/gatekeeper
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.licenses=Apache-2.0
USER 10001:10001
# `docker stop` should wait longer than GATEKEEPER_DRAIN_S + GATEKEEPER_SHUTDOWN_TIMEOUT_S: docker stop -t 35.
STOPSIGNAL SIGTERM


FROM runtime AS large
LABEL org.opencontainers.image.title="Gatekeeper large model"
COPY --from=large-venv /opt/venv /opt/venv
ENV GATEKEEPER_LARGE_HOST=0.0.0.0 \
    GATEKEEPER_LARGE_PORT=8001
EXPOSE 8001
# By the variable, not by --port: the health check follows it. Without proxies: HTTP_PROXY may be set for other reasons.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GATEKEEPER_LARGE_PORT'] + '/readyz', timeout=2)"]
ENTRYPOINT ["gatekeeper", "serve-large"]


FROM runtime AS edge
LABEL org.opencontainers.image.title="Gatekeeper edge"
COPY --from=edge-venv /opt/venv /opt/venv
# The policy's SQLite file or, with REDIS_URL, the last good copy: the one place that is written to.
ENV GATEKEEPER_HOST=0.0.0.0 \
    GATEKEEPER_PORT=8000 \
    GATEKEEPER_POLICY_PATH=/var/lib/gatekeeper/policy.db
VOLUME /var/lib/gatekeeper
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GATEKEEPER_PORT'] + '/readyz', timeout=2)"]
ENTRYPOINT ["gatekeeper", "serve"]
