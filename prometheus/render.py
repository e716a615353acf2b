"""Writes rules/modus.yml from modus.template.yml and settings.yaml: run `make mixin` after a change.

The chart does the same with its own values, see deploy/helm/modus-exporter/templates/prometheusrule.yaml.
"""

import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
HEAD = "# Written by `make mixin` from ../modus.template.yml and ../settings.yaml: change those.\n"


def render(template: str, settings: dict[str, object]) -> str:
    """The template with each `<name>` replaced by the setting of that name; KeyError when there is none."""
    return HEAD + re.sub(r"<(\w+)>", lambda match: str(settings[match[1]]), template)


if __name__ == "__main__":
    text = (FOLDER / "modus.template.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load((FOLDER / "settings.yaml").read_text(encoding="utf-8"))
    (FOLDER / "rules" / "modus.yml").write_text(render(text, settings), encoding="utf-8")
