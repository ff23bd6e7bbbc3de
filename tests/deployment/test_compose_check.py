"""`make compose-check`: the compose file's services as processes, and what it says when one of them is not well."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes import ROOT, eventually

from deploy.check import PORTS, Stack
from deploy.compose import read_compose
from docs.browser import find_chromium

pytestmark = pytest.mark.timeout(180)
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
COMMAND = (sys.executable, "-m", "deploy.check")


def started(tmp_path: Path, **environment: str) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEKEEPER_", "REDIS_URL"))}
    return subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=clean | {"TMPDIR": str(tmp_path), "GATEKEEPER_ADMIN_TOKEN": "a-token-for-tests"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """The numbers of processes that write into this run's folder, or have it in their command."""
    found = set(
        subprocess.run(["pgrep", "--full", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    )
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):  # it has ended meanwhile
            if str(output.readlink()).startswith(f"{tmp_path}/"):
                found.add(output.parts[2])
    return sorted(found - {str(os.getpid())})


@pytest.mark.slow
@needs_prometheus
def test_every_service_runs_and_the_whole_works(tmp_path: Path) -> None:
    output, error = started(tmp_path).communicate()
    assert error == ""
    services = read_compose({"GATEKEEPER_ADMIN_TOKEN": "a-token-for-tests"})
    for name, service in services.items():
        if name != "grafana":
            assert f": {' '.join(service.command)}\n" in output
    for line in ("3 targets up", "in force on edge-2 (over Redis)", "2 dashboards", "exit code 0"):
        assert line in output
    assert output.endswith("all as it should be\n")
    assert left_behind(tmp_path) == []
    assert list(tmp_path.glob("compose-check-*")) == []


@pytest.mark.slow
@needs_prometheus
def test_a_service_that_ends_is_named_with_its_own_words(tmp_path: Path) -> None:
    process = started(tmp_path, GATEKEEPER_ADMIN_TOKEN="short")
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.startswith("compose-check: edge-1 has ended: ")
    assert "GATEKEEPER_ADMIN_TOKEN: must have at least 8 characters" in error
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@needs_prometheus
@pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed")
@pytest.mark.skipif("GATEKEEPER_DATA_DIR" not in os.environ, reason="GATEKEEPER_DATA_DIR is not set")
def test_the_walkthrough_in_a_hurry(tmp_path: Path) -> None:
    """Sixty times as quick as the one in docs/: too quick for alerts, but everything else happens."""
    command = [sys.executable, "-m", "docs.write_walkthrough", "--pace", "60", "--output", str(tmp_path / "told")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "told" / "log.txt").read_text()
    assert log == done.stdout
    assert log.count("Prometheus has the threshold") == 2
    default = json.loads((ROOT / "models/bundles/clinc150-small/gatekeeper.json").read_text())["default_threshold"]
    assert f"Version 1 is back, as version 3: threshold {default:g}" in log
    assert re.search(r"[\d,]+ requests answered with 200, 0 not\n$", log)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "told").glob("*.png")}
    assert len(pictures) == 13
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


@needs_prometheus
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path)
    assert process.stdout is not None
    assert "is valid" in process.stdout.readline()
    eventually(lambda: list(tmp_path.glob("compose-check-*/large.log")), "the first service starts", within_s=30.0)
    process.send_signal(number)
    assert process.wait(30) == 130
    process.communicate()
    assert left_behind(tmp_path) == []
    assert list(tmp_path.glob("compose-check-*")) == []


def test_without_prometheus_nothing_is_started(tmp_path: Path) -> None:
    process = started(tmp_path, PATH=str(tmp_path))
    _, error = process.communicate()
    assert (process.returncode, error) == (2, "compose-check: prometheus is not installed\n")


def test_only_addresses_and_paths_differ(tmp_path: Path) -> None:
    """Command and environment of each process are those of its service, word by word."""
    services = read_compose({"GATEKEEPER_ADMIN_TOKEN": "a-token-for-tests"})
    stack = Stack(services, tmp_path, scrape_interval=None)
    for name in ("edge-1", "edge-2", "large", "redis"):
        _, *command = services[name].command
        assert [word for word in stack.command(name) if word in command] == command
    for name in ("edge-1", "edge-2", "large"):
        theirs, ours = services[name].environment, stack.environment(name)
        assert theirs.keys() <= ours.keys()
        differing = {key for key in theirs if theirs[key] != ours[key]} - {"PATH"}
        assert differing <= {
            *("GATEKEEPER_HOST", "GATEKEEPER_PORT", "GATEKEEPER_POLICY_PATH", "GATEKEEPER_REMOTE_URL", "REDIS_URL"),
            *("GATEKEEPER_LARGE_HOST", "GATEKEEPER_LARGE_PORT"),
        }
    edge = stack.environment("edge-1")
    assert edge["GATEKEEPER_REMOTE_URL"] == f"http://127.0.0.1:{stack.ports['large']}"
    assert edge["REDIS_URL"] == f"redis://127.0.0.1:{stack.ports['redis']}/0"
    assert edge["GATEKEEPER_POLICY_PATH"].startswith(str(tmp_path))
    assert edge["GATEKEEPER_POLICY_PATH"] != stack.environment("edge-2")["GATEKEEPER_POLICY_PATH"]
    assert stack.ports.keys() == PORTS.keys()


def test_a_required_variable_that_is_not_set_is_told_in_the_files_own_words() -> None:
    with pytest.raises(ValueError, match="GATEKEEPER_ADMIN_TOKEN: set it to a secret of at least 8 characters"):
        read_compose({})
