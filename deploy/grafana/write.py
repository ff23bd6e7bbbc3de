"""Write the dashboards that Grafana reads: `python -m deploy.grafana.write`.

They are programs here and JSON there, so that forty panels look alike and a metric's new name is one change. Edit
overview.py, model.py or panels.py, never the JSON: a test holds the two together.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.model import model
from deploy.grafana.overview import overview

DIRECTORY = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """The text of each file, by its name."""
    dashboards = {"overview.json": overview(), "model.json": model()}
    return {
        name: json.dumps(dashboard, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
        for name, dashboard in dashboards.items()
    }


if __name__ == "__main__":
    for name, text in documents().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
        print(DIRECTORY / name)
