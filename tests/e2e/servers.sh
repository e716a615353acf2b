#!/bin/sh
# Prometheus and Alertmanager for the end-to-end tests, from the system's packages.
# As root on Debian they are installed when missing; elsewhere the tests that need them are skipped.
command -v prometheus >/dev/null && command -v alertmanager >/dev/null && exit 0
command -v prometheus >/dev/null && command -v prometheus-alertmanager >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # the packages start their daemons when installed: nobody asked for that here
    [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
    apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager >/dev/null
else
    echo "Prometheus and Alertmanager are not installed: the end-to-end tests that need them are skipped" >&2
fi
