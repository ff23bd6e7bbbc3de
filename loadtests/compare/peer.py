"""Another server than ours, as the benchmark starts it: in its own environment, set up as its documentation says."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from loadtests.common.servers import ROOT, Cores, Server, free_port, running
from loadtests.compare.environments import environment_python, environment_versions

START_S = 240.0  # on a busy machine


def _nothing(_: Path) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Peer:
    """`package` is also the name of its environment and of its requirements, peers/PACKAGE.txt.

    `command`: for `python -m`. `environment`: its variables, given a directory that is its own for this run. `pinned`:
    on the core that all servers share; else on every core.
    """

    name: str
    package: str
    command: tuple[str, ...]
    ready: str
    path: str
    body: str
    environment: Callable[[Path], Mapping[str, str]] = _nothing
    pinned: bool = True

    def start(self, directory: Path, cores: Cores) -> AbstractContextManager[Server]:
        """It, ready. Raises BenchFailed if it cannot be installed or does not start."""
        python = environment_python(self.package)
        return running(
            self.name,
            self.command,
            port=free_port(),
            ready=self.ready,
            environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.environment(directory)},
            directory=directory,
            core=cores.servers if self.pinned else None,
            python=python,
            start_s=START_S,
        )

    def version(self) -> str:
        """As installed."""
        return environment_versions(self.package).get(self.package, "unknown")
