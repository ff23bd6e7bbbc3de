"""What a run has found so far, in one process of Locust, and how the processes agree about it.

A master changes the phase with a message to its workers, which hand over what they have counted as they confirm it,
and goes on when all have: what follows the change cannot be in the phase before. So the items of a row are exact with
workers too, as they are for the whole run. Its seconds, and so its requests/s, are the master's: some milliseconds
longer. The answers that come after a worker's last report are in no row, as they are in none of Locust's own numbers.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtests.users.choice import WRONG_USE, Choice, WrongUse
from loadtests.users.phases import NO_PHASE, PhaseRow, Phases
from loadtests.users.tally import Tally

CHANGE, CONFIRM = "gatekeeper_phase", "gatekeeper_phase_seen"
CONFIRM_S = 5.0


class Record:
    """Tally and phases of a process.

    `choices`: what users of a class send in this run, filled in by the first of them. `checks` get the options of a
    run that is about to start, and raise WrongUse where there can be none.
    """

    def __init__(self, environment: Environment) -> None:
        self.tally = Tally()
        self.phases = Phases()
        self.choices: dict[type, Choice] = {}
        self.checks: list[Callable[[Namespace], None]] = []
        self._environment = environment
        self._unconfirmed: set[str] = set()

    def listen(self) -> None:
        """Take the messages of a master, or of workers."""
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            runner.register_message(CHANGE, self._changed)
        elif isinstance(runner, MasterRunner):
            runner.register_message(CONFIRM, self._confirmed)

    def clear(self) -> None:
        """A new run."""
        self.tally.clear()
        self.phases.clear()
        self.choices.clear()

    def begin(self, name: str, users: int, policy_version: int | None = None, claims: bool = False) -> None:
        """A phase begins, in all processes; the one before is over."""
        self.phases.close()
        self._change(name, claims)
        self.phases.count(name, users, policy_version)

    def end(self) -> None:
        """The phase is over, in all processes; what follows belongs to none."""
        if self.phases.close():
            self._change(NO_PHASE, False)

    def rows(self) -> list[PhaseRow]:
        """A row for each phase."""
        return self.phases.rows(self.tally)

    def _change(self, name: str, claims: bool) -> None:
        self.phases.change(name, claims)
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return
        clients = [*runner.clients.ready, *runner.clients.spawning, *runner.clients.running]
        self._unconfirmed = {client.id for client in clients}
        runner.send_message(CHANGE, {"name": name, "claims": claims})
        deadline = time.monotonic() + CONFIRM_S
        while self._unconfirmed and time.monotonic() < deadline:
            gevent.sleep(0.005)
        if self._unconfirmed:
            count = len(self._unconfirmed)
            print(
                f"loadtest: {count} workers did not confirm the phase {name!r}: do not trust its row", file=sys.stderr
            )

    def _changed(self, msg: Any, **_: Any) -> None:
        """On a worker."""
        self.phases.change(msg.data["name"], msg.data["claims"])
        self._environment.runner.send_message(CONFIRM, self.tally.take())

    def _confirmed(self, msg: Any, **_: Any) -> None:
        """On a master."""
        self.tally.merge(msg.data)
        self._unconfirmed.discard(msg.node_id)


def record_of(environment: Environment) -> Record:
    """The one record of this process."""
    if not hasattr(environment, "gatekeeper"):
        environment.gatekeeper = Record(environment)
    record: Record = environment.gatekeeper
    return record


def check_before_a_run(environment: Environment, check: Callable[[Namespace], None]) -> None:
    """Check now, where the run begins by itself, else when somebody starts one in the web page."""
    options = environment.parsed_options
    if options is None or isinstance(environment.runner, WorkerRunner):
        return
    record_of(environment).checks.append(check)
    if options.headless or options.autostart:
        try:
            check(options)
        except WrongUse as wrong:
            print(f"loadtest: {wrong}", file=sys.stderr, flush=True)
            sys.exit(WRONG_USE)
