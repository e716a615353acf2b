"""The settings of rules and dashboards: those of settings.yaml, unless a file of one's own has others.

`MIXIN_SETTINGS` names that file. `MIXIN_OUTPUT` is the folder that gets rules/ and dashboards/, in place of
the committed ones. grafana/ has this file as a link.
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parent.parent


def settings() -> dict[str, Any]:
    """Each setting by its name; ends the program with one line when the file of one's own is of no use."""
    shipped: dict[str, Any] = yaml.safe_load((_ROOT / "prometheus/settings.yaml").read_text(encoding="utf-8"))
    name = os.environ.get("MIXIN_SETTINGS")
    if not name:
        return shipped
    try:
        own = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.exit(f"{name}: {' '.join(str(error).split())}")
    if not isinstance(own, dict):
        sys.exit(f"{name}: expected settings, such as min_runs: 20")
    for key, value in own.items():
        if key not in shipped:
            sys.exit(f"{name}: {key}: no such setting; there are {', '.join(shipped)}")
        if isinstance(value, str) != isinstance(shipped[key], str):
            sys.exit(f"{name}: {key}: expected something like {shipped[key]}")
    return shipped | own


def write(committed: str, texts: dict[str, str]) -> None:
    """Write texts, by file name, into a folder of the repository, or of the same name in `MIXIN_OUTPUT`."""
    output = os.environ.get("MIXIN_OUTPUT")
    folder = Path(output) / Path(committed).name if output else _ROOT / committed
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
