#!/bin/sh
# release-check.sh VERSION: build what is released, install it as a user would, scrape the demo from it.
set -eu
cd "$(dirname "$0")/.."
version=$1 python=${PYTHON:-python3}
fail() { echo "release-check: $*" >&2; exit 1; }

grep -qE "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}\$" CHANGELOG.md || fail "CHANGELOG.md has no dated entry for $version"
[ "$(grep -cE "^(version|appVersion): $version\$" deploy/helm/modus-exporter/Chart.yaml)" = 2 ] ||
    fail "deploy/helm/modus-exporter/Chart.yaml is not of version $version"

work=$(mktemp -d) pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || :; rm -rf "$work"' EXIT
rm -rf dist
"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check build twine
"$work/build/bin/python" -m build --outdir dist . >"$work/build.log" 2>&1 || { cat "$work/build.log"; fail "the build failed"; }
"$work/build/bin/twine" check --strict dist/* >"$work/twine.log" || { cat "$work/twine.log"; fail "PyPI would refuse it"; }

tar -xzf "dist/modus_exporter-$version.tar.gz" -C "$work"
make --silent -C "$work/modus_exporter-$version" test-fast PYTHON="$python" >"$work/sdist.log" 2>&1 ||
    { tail -50 "$work/sdist.log"; fail "the tests do not run from the sdist"; }

"$python" -m venv "$work/user"
"$work/user/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
"$work/user/bin/pip" install --quiet --disable-pip-version-check --no-deps "dist/modus_exporter-$version-py3-none-any.whl"
"$work/user/bin/pip" check >/dev/null || fail "the wheel asks for what requirements.lock does not have"

cd "$work" # nothing of the checkout may be imported
"$work/user/bin/modus-exporter" --version | grep -qF "modus-exporter $version " || fail "--version is not $version"
[ -s "$("$work/user/bin/modus-exporter" --help | sed -n 's/^A configuration with every key: //p')" ] ||
    fail "--help names no sample configuration"
"$work/user/bin/modus-exporter" --demo --web.listen-address 127.0.0.1:0 2>"$work/log" &
pid=$!
tries=0
until address=$(sed -n 's/.*msg=listening address=\([^ ]*\).*/\1/p' "$work/log") && [ -n "$address" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] && kill -0 "$pid" 2>/dev/null || { cat "$work/log" >&2; fail "the demo does not start"; }
    sleep 0.2
done
"$work/user/bin/python" -c "import sys, urllib.request as u
sys.stdout.buffer.write(u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=30).read())" \
    "http://$address/metrics" >"$work/metrics"
grep -q '^modus_up 1\.0$' "$work/metrics" || fail "the demo's agents were not read"
agents=$(grep -c '^modus_agent_up{' "$work/metrics")
kill "$pid"
wait "$pid" || fail "SIGTERM ended it with exit code $?"
pid=
echo "release-check: $version is ready: dist/ has sdist and wheel, the demo showed $agents agents"
