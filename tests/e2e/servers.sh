#!/bin/sh
# servers.sh DIRECTORY: Prometheus, Alertmanager and PostgreSQL for the tests, those that are not installed, into
# DIRECTORY/usr/bin.
# They come from Debian's packages, unpacked and not installed: no root is needed and nothing of the machine changes.
# Where that fails DIRECTORY stays empty, and the tests that need them are skipped.
servers=$1
has() { for name; do command -v "$name" >/dev/null || return 1; done; }
packages=
has prometheus promtool || packages=prometheus
has amtool && { has alertmanager || has prometheus-alertmanager; } || packages="$packages prometheus-alertmanager"
has postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages="$packages postgresql"

rm -rf "$servers.part" && mkdir -p "$servers.part" || exit
if [ -n "$packages" ] && has apt-get dpkg-deb timeout && work=$(mktemp -d); then
    trap 'rm -rf "$work" "$servers.part"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
    # lists and cache of its own and none of the machine's hooks, which may write elsewhere
    cat >"$work/apt.conf" <<EOF
Dir::State "$work/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "10";
Acquire::https::Timeout "10";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF
    # a source that does not answer is no reason to give up: another one may have the packages;
    # promtool is a package of its own from Debian 13 on, and a part of prometheus before
    (cd "$work" && timeout 120 apt-get -c apt.conf -qq update
        case $packages in *postgresql*) # the name stands for that of a version, which needs libraries
            needs() { apt-cache -c apt.conf depends --important "$@" | sed -n 's/^ *|*Depends: //p'; }
            version=$(needs postgresql | grep '^postgresql-[0-9]*$' | head -n 1)
            for library in $(needs --recurse "$version" | grep '^lib' | grep -v '^libllvm\|^libc6' | sort -u); do
                # it may be known and not installed
                [ "$(dpkg-query -W -f '${db:Status-Status}' "$library" 2>/dev/null)" = installed ] ||
                    packages="$packages $library"
            done
            packages="$packages $version" ;;
        esac
        for package in $packages promtool; do timeout 120 apt-get -c apt.conf -qq download "$package"; done
    ) >"$work/log" 2>&1
    for package in "$work"/*.deb; do
        [ -e "$package" ] && dpkg-deb --fsys-tarfile "$package" |
            tar -xC "$servers.part" --wildcards './usr/bin/*' './usr/share/prometheus/alertmanager/*.tmpl' \
                './usr/lib/postgresql/*' './usr/share/postgresql/*' '*/lib/*-linux-*/*.so.*' 2>/dev/null
    done
    # PostgreSQL finds what belongs to it from where it is, but for the libraries
    for program in "$servers.part"/usr/lib/postgresql/*/bin/initdb "$servers.part"/usr/lib/postgresql/*/bin/postgres; do
        [ -e "$program" ] || continue
        cat >"$servers.part/usr/bin/${program##*/}" <<EOF
#!/bin/sh
here=\$(cd "\$(dirname "\$0")/../.." && pwd)
for libraries in "\$here"/lib/*-linux-* "\$here"/usr/lib/*-linux-*; do
    LD_LIBRARY_PATH=\${LD_LIBRARY_PATH:+\$LD_LIBRARY_PATH:}\$libraries
done
export LD_LIBRARY_PATH
exec "\$here${program#"$servers.part"}" "\$@"
EOF
        chmod +x "$servers.part/usr/bin/${program##*/}"
    done
    # Debian's Alertmanager looks for its templates at a fixed place. A name of the same length leads it to where they
    # are: a directory that is handed to it open.
    if [ -e "$servers.part/usr/bin/prometheus-alertmanager" ]; then
        mkdir -p "$servers.part/usr/lib"
        LC_ALL=C sed 's#/usr/share/prometheus/alertmanager#/proc/self/fd////////////////////9#g' \
            "$servers.part/usr/bin/prometheus-alertmanager" >"$servers.part/usr/lib/alertmanager"
        cat >"$servers.part/usr/bin/prometheus-alertmanager" <<'EOF'
#!/bin/sh
here=$(dirname "$0")/..
exec 9<"$here/share/prometheus/alertmanager" && exec "$here/lib/alertmanager" "$@"
EOF
        chmod +x "$servers.part/usr/lib/alertmanager"
    fi
    for program in "$servers.part"/usr/bin/*; do # a shared library may be missing
        [ -e "$program" ] && { "$program" --version >/dev/null 2>&1 || rm "$program"; }
    done
fi
[ -x "$servers.part/usr/bin/postgres" ] || rm -f "$servers.part/usr/bin/initdb"
missing=
for package in $packages; do
    [ -x "$servers.part/usr/bin/${package%ql}" ] || missing="${missing:+$missing and }$package"
done
[ -z "$missing" ] || echo "$missing not found and not to be had with apt-get: the tests that need them are skipped" >&2
mv "$servers.part" "$servers"
