"""Undoes what a load test did to a service when the load test ends, however it ends: `kill -9` too.

A process of its own, `python -m loadtests.users.guard`. It is told what to undo as one line of JSON, and does it when
its input ends: because the load test says so, or because it is no more. Ctrl-C does not reach it.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from loadtests.common.edge_policy import EdgePolicy, EdgeUnreachable, PolicyChanged, PolicyRefused

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 30.0  # for an edge that is out of reach just now
COMMAND_TIMEOUT_S = 120.0


class Guard:
    """What the load test holds on to; `release` undoes now, and says whether it could be done."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.users.guard"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        # In its pipe before anything is done, so that it will be undone even if this is the last line that we run.
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def release(self) -> bool:
        """Undo it, once."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(PATIENCE_S + COMMAND_TIMEOUT_S) == 0


def policy_task(url: str, token: str, policy: dict[str, Any], mark: str) -> dict[str, Any]:
    """To bring that policy's threshold back where the one in force has a note that begins with `mark`."""
    return {
        "undo": "policy",
        "url": url,
        "token": token,
        "threshold": policy["threshold"],
        "version": policy["version"],
        "mark": mark,
    }


def processes_task(processes: list[psutil.Process]) -> dict[str, Any]:
    """To let stopped processes go on."""
    return {"undo": "processes", "processes": [[process.pid, process.create_time()] for process in processes]}


def command_task(command: str) -> dict[str, Any]:
    """To run a command of the operator's."""
    return {"undo": "command", "command": command}


def _restore_policy(task: dict[str, Any]) -> str:
    """What became of it. Raises PolicyRefused."""
    edge = EdgePolicy(task["url"], task["token"])
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            current = edge.read()
            if not str(current.get("note", "")).startswith(task["mark"]):
                if current["version"] == task["version"]:
                    return f"the policy is as it was: threshold {current['threshold']:g} (version {current['version']})"
                return f"the policy is left as somebody else has set it meanwhile (version {current['version']})"
            note = f"back to version {task['version']} after a threshold sweep"
            restored = edge.set_threshold(task["threshold"], note, current["version"])
        except (EdgeUnreachable, PolicyChanged):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return f"the policy is restored: threshold {restored['threshold']:g} (version {restored['version']})"


def _resume(task: dict[str, Any]) -> str:
    resumed = []
    for pid, created in task["processes"]:
        try:
            process = psutil.Process(pid)
            if process.create_time() == created:  # else the number is another process's by now
                process.resume()
                resumed.append(str(pid))
        except psutil.NoSuchProcess:
            continue
    return f"the large model goes on (process {', '.join(resumed)})" if resumed else "the large model has ended"


def _run(task: dict[str, Any]) -> str:
    command = task["command"]
    subprocess.run(command, shell=True, check=True, timeout=COMMAND_TIMEOUT_S)  # noqa: S602  the operator's own
    return f"the large model was brought back by `{command}`"


def main() -> int:
    """Wait for the end of the input, then undo."""
    task = json.loads(sys.stdin.readline())
    sys.stdin.read()
    try:
        print({"policy": _restore_policy, "processes": _resume, "command": _run}[task["undo"]](task), flush=True)
    except PolicyRefused as refused:
        by_hand = f"set the threshold back to {task['threshold']:g} yourself"
        print(f"loadtest: the policy was NOT restored ({refused}): {by_hand}", file=sys.stderr)
        return 1
    except (psutil.Error, OSError, subprocess.SubprocessError) as error:
        print(f"loadtest: the large model was NOT brought back ({error}): do it yourself", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
