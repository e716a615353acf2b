"""The mixin rendered with settings of one's own, as `make mixin SETTINGS=... OUTPUT=...` does it."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RULES, DASHBOARDS = ROOT / "prometheus" / "render.py", ROOT / "grafana" / "generate.py"


def run(script: Path, folder: Path, settings: object = None) -> subprocess.CompletedProcess[str]:
    """Run one of the two scripts, its output and a file of these settings, if any, in `folder`."""
    env = {**os.environ, "MIXIN_OUTPUT": str(folder), "MIXIN_SETTINGS": ""}
    if settings is not None:
        (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
        env["MIXIN_SETTINGS"] = str(folder / "mine.yaml")
    command = [sys.executable, script]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def rendered(script: Path, folder: Path, settings: object = None) -> dict[str, str]:
    """What it writes, by file; it says nothing."""
    done = run(script, folder, settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*/*")}
