"""A dataset of a few dozen sentences in CLINC150's format, written for these tests."""

import json
from pathlib import Path

SUBJECTS = {
    "balance": ["balance", "money left", "funds", "savings"],
    "timer": ["timer", "countdown", "stopwatch", "alarm"],
    "weather": ["weather", "rain", "forecast", "sunshine"],
}
FRAMES = [
    "tell me about the {}",
    "what is with my {}",
    "i want to know the {} please",
    "{} now",
    "could you check the {}",
    "how is the {} today",
    "show {}",
    "any news on the {}",
]


def write_tiny_clinc150(directory: Path) -> Path:
    """Returns the data directory that holds clinc150/data_full.json: 3 labels, 96 + 24 + 24 texts."""
    rows = [[frame.format(noun), label] for label, nouns in SUBJECTS.items() for noun in nouns for frame in FRAMES]
    content = {
        "train": rows,
        "val": [[f"so {text}", label] for text, label in rows[::4]],
        "test": [[f"well {text}", label] for text, label in rows[1::4]],
        "oos_train": [],
        "oos_val": [],
        "oos_test": [["do fish dream", "oos"], ["paint it black", "oos"]],
    }
    (directory / "clinc150").mkdir(parents=True)
    (directory / "clinc150" / "data_full.json").write_text(json.dumps(content))
    return directory
