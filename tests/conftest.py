"""Fixtures that several test files share. Services are real processes, started once a session."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from support import faults
from support.processes import Service, admin, spawn, spawn_edge, stopping

# Two workers share the cores: threads of torch that wait for each other in both would make a step ten times as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A time is no assertion: the machine may be busy.
hypothesis.settings.register_profile("gatekeeper", deadline=None)
hypothesis.settings.load_profile("gatekeeper")
# As the commands set it; the library reads it once, at its first import.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A service that was started in this process sends all logs to the test's stderr, which is closed afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The packaged large model; no test may stop it."""
    service = spawn("serve-large", tmp_path_factory.mktemp("large") / "large.log")
    with stopping(service):
        service.wait_ready()
        yield service


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory, large: Service) -> Iterator[Service]:
    """The packaged small model in front of it; no test may stop it, or leave its policy changed."""
    service = spawn_edge(tmp_path_factory.mktemp("edge"), large.url)
    with stopping(service):
        service.wait_ready()
        yield service


@pytest.fixture
def client(edge: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=edge.url, timeout=20.0) as client:
        yield client


@pytest.fixture
def restored_policy(client: httpx.Client) -> Iterator[None]:
    """The test may change the policy: its fields are put back afterwards."""
    before = admin(client, "GET", "policy").json()
    yield
    fields = {key: before[key] for key in ("threshold", "deferral", "on_remote_failure", "remote_timeout_s", "note")}
    assert admin(client, "PATCH", "policy", json=fields).status_code == 200


@pytest.fixture(scope="session")
def bundles() -> Path:
    return Path(__file__).resolve().parent.parent / "models" / "bundles"


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> faults.Row:
    """The test's row in docs/faults.md."""
    return faults.Row(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The rows of all faults that were seen, as docs/faults.md has them."""
    rows = {
        report.nodeid: dict(report.user_properties)["fault"]
        for report in terminalreporter.stats.get("passed", [])
        if "fault" in dict(report.user_properties)
    }
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(faults.table(rows))


@pytest.fixture(scope="session")
def image_large(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> Iterator[Service]:
    """The packaged large model for images; no test may stop it."""
    log = tmp_path_factory.mktemp("image_large") / "large.log"
    service = spawn("serve-large", log, LARGE_BUNDLE=str(bundles / "fashion-mnist-large"))
    with stopping(service):
        service.wait_ready()
        yield service


@pytest.fixture(scope="session")
def image_edge(tmp_path_factory: pytest.TempPathFactory, bundles: Path, image_large: Service) -> Iterator[Service]:
    """The packaged small model for images in front of it; no test may stop it, or leave its policy changed."""
    directory = tmp_path_factory.mktemp("image_edge")
    service = spawn_edge(directory, image_large.url, BUNDLE=str(bundles / "fashion-mnist-small"))
    with stopping(service):
        service.wait_ready()
        yield service
