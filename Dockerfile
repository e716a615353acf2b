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
# -I: nothing is imported from the working directory, which is writable
RUN cp -r exporter "$(/opt/modus-exporter/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && printf '%s\n' '#!/opt/modus-exporter/bin/python -I' 'from exporter.__main__ import run' 'run()' >/opt/modus-exporter/bin/modus-exporter \
    && chmod 755 /opt/modus-exporter/bin/modus-exporter \
    && /opt/modus-exporter/bin/python -m compileall -q /opt/modus-exporter

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
COPY LICENSE /usr/share/doc/modus-exporter/
COPY config.yaml /etc/modus-exporter/config.yaml
# for everybody: an image is run as any user (`docker run --user`), and by OpenShift as one in group 0
RUN install -d -o 65532 -g 0 -m 1777 /var/lib/modus-exporter
# a variable, not an argument: it stays when `docker run` or `docker exec` give arguments of their own.
# HEALTH_URL is where the health check asks: set it when --web.listen-address says another port
ENV PATH=/opt/modus-exporter/bin:$PATH \
    MODUS_EXPORTER_CONFIG_FILE=/etc/modus-exporter/config.yaml \
    HEALTH_URL=http://127.0.0.1:10371/-/healthy
USER 65532:65532
# state.path of config.yaml is relative, and so is in the volume
WORKDIR /var/lib/modus-exporter
VOLUME /var/lib/modus-exporter
EXPOSE 10371
# no proxy: HTTP_PROXY is for the API, not for this machine
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s \
    CMD ["/opt/modus-exporter/bin/python", "-I", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ['HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["/opt/modus-exporter/bin/modus-exporter"]
