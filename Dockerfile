# modus-exporter as an image: make image. Nothing is written but in /var/lib/modus-exporter.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /build
COPY requirements.lock ./
# the virtual environment has no pip of its own: the image that is run cannot install anything into it
RUN python3 -m venv --without-pip /opt/modus-exporter \
    && python3 -m pip --python /opt/modus-exporter/bin/python install --no-cache-dir --disable-pip-version-check \
       --require-hashes --only-binary :all: -r requirements.lock
COPY exporter ./exporter
RUN cp -r exporter "$(/opt/modus-exporter/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && /opt/modus-exporter/bin/python -m compileall -q /opt/modus-exporter \
    && install -d /var/lib/modus-exporter

FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="modus-exporter" \
      org.opencontainers.image.description="Prometheus exporter for Modus AI agents: every run counted exactly once" \
      org.opencontainers.image.source="https://github.com/modus-exporter/modus-exporter" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/modus-exporter /opt/modus-exporter
COPY --from=build --chown=65532:65532 /var/lib/modus-exporter /var/lib/modus-exporter
COPY LICENSE /usr/share/doc/modus-exporter/
COPY config.yaml /etc/modus-exporter/config.yaml
# where the health check asks: set it when --web.listen-address says another port
ENV HEALTH_URL=http://127.0.0.1:10371/-/healthy
USER 65532:65532
# state.path of config.yaml is relative, and so is in the volume
WORKDIR /var/lib/modus-exporter
VOLUME /var/lib/modus-exporter
EXPOSE 10371
# no proxy: HTTP_PROXY is for the API, not for this machine
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s \
    CMD ["/opt/modus-exporter/bin/python", "-I", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ['HEALTH_URL'], timeout=4)"]
# -I: nothing is imported from the working directory, which is writable
ENTRYPOINT ["/opt/modus-exporter/bin/python", "-I", "-m", "exporter"]
CMD ["--config.file=/etc/modus-exporter/config.yaml"]
