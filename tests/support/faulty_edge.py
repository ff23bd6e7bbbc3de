"""The `gatekeeper` command with a model that fails: `FAULT=hang:TEXT python -m tests.support.faulty_edge serve ...`.

FAULT, several separated by semicolons; TEXT is looked for in the items of a batch:
    hang:TEXT       the batch does not end while the file FAULT_FILE exists (for ever without that variable), and
                    FAULT_FILE.reached exists from then on
    raise:TEXT      RuntimeError
    die:TEXT        SystemExit, which is no Exception: the end of a model thread
    lose:TEXT       one result too few
    slow:SECONDS    every batch takes so much longer
    clock:FILE      the wall clock is off by the seconds that FILE holds, whenever it is asked
    files:NUMBER    the limit of open files
"""

import os
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from models.inference.classifier import Classifier
from service import cli
from service.policy import live as live_policy

PROCESS_FAULTS = ("clock", "files")

predict = Classifier.predict
real_time = time.time


def hang() -> None:
    path = os.environ.get("FAULT_FILE")
    if path is not None:
        Path(f"{path}.reached").touch()
    while path is None or Path(path).exists():
        time.sleep(0.02)


def faulty_predict(classifier: Classifier, items: Sequence[Any]) -> Any:
    results = predict(classifier, items)
    for fault in os.environ["FAULT"].split(";"):
        kind, _, argument = fault.partition(":")
        if kind in PROCESS_FAULTS:
            continue
        if kind == "slow":
            time.sleep(float(argument))
        elif not any(isinstance(item, str) and argument in item for item in items):
            continue
        elif kind == "hang":
            hang()
        elif kind == "raise":
            raise RuntimeError("an injected fault")
        elif kind == "die":
            raise SystemExit(3)
        elif kind == "lose":
            results = results[1:]
        else:
            raise ValueError(f"no such fault: {kind}")
    return results


def break_clock(file: Path) -> None:
    def offset_s() -> float:
        return float(file.read_text())

    class JumpingDatetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=offset_s())

    time.time = lambda: real_time() + offset_s()
    live_policy.datetime = JumpingDatetime


def break_process() -> None:
    for fault in os.environ["FAULT"].split(";"):
        kind, _, argument = fault.partition(":")
        if kind == "clock":
            break_clock(Path(argument))
        elif kind == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(argument), int(argument)))


def main(argv: Sequence[str] | None = None) -> int:
    break_process()
    Classifier.predict = faulty_predict
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
