"""Writes rules/modus.yml from modus.template.yml and the settings: run `make mixin` after a change.

The chart does the same with its own values, see deploy/helm/modus-exporter/templates/prometheusrule.yaml.
"""

import re
from pathlib import Path

from settings import settings, write

HEAD = "# Written by `make mixin` from prometheus/modus.template.yml and settings.yaml: change those.\n"


def render(template: str, values: dict[str, object]) -> str:
    """The template with each `<name>` replaced by the setting of that name; KeyError when there is none."""
    return HEAD + re.sub(r"<(\w+)>", lambda match: str(values[match[1]]), template)


if __name__ == "__main__":
    text = (Path(__file__).parent / "modus.template.yml").read_text(encoding="utf-8")
    write("prometheus/rules", {"modus.yml": render(text, settings())})
