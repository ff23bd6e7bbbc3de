"""How many users there are at what time, and what happens to the cascade meanwhile; who they are is in the locustfile.

    locust -f loadtests/locustfile.py,loadtests/shapes.py --headless --users 16 --run-time 60s --shape spike

- `steady`: the same users all the time.
- `ramp`: five steps up to all users.
- `spike`: a tenth of the users, all of them for a fifth of the time, a tenth again.
- `threshold-sweep`: the edge's policy gets one threshold after the other (--thresholds) by its admin API, with the
  token of GATEKEEPER_ADMIN_TOKEN or .gatekeeper/admin-token; the threshold that was there comes back.
- `large-model-outage`: in the second third there is no large model: the process that listens on --large-port is
  stopped, or what you name with --outage-command and --recovery-command is done; it comes back.

A row for each phase stands at the end of the output, in PREFIX_phases.csv (--csv PREFIX) and in the tab `Phases`. The
phases share the run time; what lies between them (users who come, a command) is not measured and comes on top. In the
web UI choose the shape in the form; with --class-picker in its own list. What was changed is undone when the run ends,
also on Ctrl-C, on a failure and on `kill -9`, by loadtests/users/guard.py.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"
# Locust's event hooks carry no types.

import secrets
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent
from gevent.lock import RLock
from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtests.common.edge_policy import EdgePolicy, PolicyRefused, find_token
from loadtests.users import outage, stages
from loadtests.users.choice import WrongUse
from loadtests.users.guard import Guard, policy_task
from loadtests.users.outage import ByCommand, ByStopping, NoOutage
from loadtests.users.record import check_before_a_run, record_of
from loadtests.users.stages import Stage

GATHERING_S = 10.0  # beyond what the spawn rate takes: then the phase begins with the users there are
DEFAULT_HOST = "http://127.0.0.1:8000"

Tick = tuple[int, float]


class Staged(LoadTestShape):
    """A shape that goes from stage to stage."""

    abstract = True
    use_common_options = True
    name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._course: Iterator[Tick] | None = None
        self._over = False
        self._lock = RLock()  # what is being done is done before it is undone
        self._guard: Guard | None = None
        self.given = Namespace()

    def tick(self) -> Tick | None:
        """The users now; None ends the run. Locust asks every second, and perhaps once more while it stops."""
        assert self.runner is not None
        if self._over:
            return self.runner.shape_last_tick or (0, 1.0)
        if self._course is None:
            self._course = self._run()
        try:
            return next(self._course, None)
        except (WrongUse, PolicyRefused, NoOutage) as error:
            print(f"loadtest: {error}", file=sys.stderr, flush=True)
            self._environment.process_exit_code = 1
            return None
        except Exception:  # whatever it was: nothing is left as it is, and Locust reports it
            self.leave()
            raise

    def check(self, options: Namespace) -> None:
        """Raises WrongUse where this shape cannot be run."""

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """What to go through."""
        raise NotImplementedError

    def enter(self, stage: Stage) -> None:
        """Begin a stage whose users are there."""
        record_of(self._environment).begin(stage.name, stage.users)

    def reset_time(self) -> None:
        """Locust calls this when a run begins."""
        super().reset_time()
        self._over = False

    def leave(self) -> None:
        """The run is over: undo what was done. May be called again."""
        self._over, self._course = True, None
        record_of(self._environment).phases.close()
        with self._lock:
            guard, self._guard = self._guard, None
            if guard is not None and not guard.release():
                self._environment.process_exit_code = 1

    @property
    def _environment(self) -> Environment:
        assert self.runner is not None
        return self.runner.environment

    @property
    def _options(self) -> Namespace:
        options: Namespace = self._environment.parsed_options
        return options

    def _run(self) -> Iterator[Tick]:
        record = record_of(self._environment)
        record.phases.title = stages.SHAPES[self.name]
        users, seconds = int(self._options.num_users or 1), float(self._options.run_time or stages.DEFAULT_SECONDS)
        for stage in self.stages(users, seconds):
            yield from self._gather(stage.users)
            with self._lock:
                if self._over:
                    return
                self.enter(stage)
            print(f"{self.name}: {record.phases.title} {stage.name}, {stage.seconds:.1f} s", flush=True)
            yield from self._hold(stage)
        record.end()

    def _gather(self, users: int) -> Iterator[Tick]:
        """Until there are so many users."""
        assert self.runner is not None
        if self.runner.user_count == users:
            return
        record_of(self._environment).end()
        rate = float(self._options.spawn_rate or users)
        deadline = time.monotonic() + abs(users - self.runner.user_count) / rate + GATHERING_S
        yield users, rate
        while self.runner.user_count != users and time.monotonic() < deadline:
            yield users, rate

    def _hold(self, stage: Stage) -> Iterator[Tick]:
        """Until the stage is over; Locust would ask again in a second, which may be too late."""
        ends = time.monotonic() + stage.seconds
        while (left := ends - time.monotonic()) > 0:
            if left > 1:
                yield stage.users, float(self._options.spawn_rate or stage.users)
            else:
                gevent.sleep(left)


class Steady(Staged):
    """The same users all the time."""

    name = "steady"

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """One."""
        return stages.steady(users, seconds)


class Ramp(Staged):
    """More and more users."""

    name = "ramp"

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """Steps of the same height."""
        return stages.ramp(users, seconds)


class Spike(Staged):
    """Few users, suddenly many, few again."""

    name = "spike"

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """Before, spike, after."""
        return stages.spike(users, seconds)


class ThresholdSweep(Staged):
    """The edge's policy gets one threshold after the other."""

    name = "threshold-sweep"

    def __init__(self) -> None:
        super().__init__()
        self._edge: EdgePolicy | None = None
        self._mark = ""
        self._version = 0

    def check(self, options: Namespace) -> None:
        """The token is there and right, and the edge defers."""
        if self.given.token is None:
            raise WrongUse("a threshold sweep needs the admin token: set GATEKEEPER_ADMIN_TOKEN to the edge's")
        host = (options.host or self.given.host).rstrip("/")
        if host != self.given.host:
            raise WrongUse(f"the admin token of this run goes to {self.given.host} alone: name the edge with --host")
        try:
            edge = EdgePolicy(self.given.admin_url, self.given.token)
            policy = edge.read()
            for threshold in thresholds_of(options):
                edge.check_threshold(threshold)
        except (PolicyRefused, ValueError) as error:
            raise WrongUse(str(error)) from None
        if policy.get("deferral") != "on":
            raise WrongUse("the edge's policy has deferral off, so that all thresholds do the same: set it to on first")

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """One for each threshold."""
        self.check(self._options)
        return stages.threshold_sweep(users, seconds, thresholds_of(self._options))

    def enter(self, stage: Stage) -> None:
        """Set the threshold. Raises PolicyRefused, also when somebody else has changed the policy meanwhile."""
        assert stage.threshold is not None
        if self._guard is None:
            self._edge = EdgePolicy(self.given.admin_url, self.given.token)
            policy = self._edge.read()
            self._version = policy["version"]
            self._mark = f"threshold sweep {secrets.token_hex(4)}"
            self._guard = Guard(policy_task(self.given.admin_url, self.given.token, policy, self._mark))
        assert self._edge is not None
        note = f"{self._mark}, of a load test"
        self._version = self._edge.set_threshold(stage.threshold, note, self._version)["version"]
        record_of(self._environment).begin(stage.name, stage.users, policy_version=self._version)


class LargeModelOutage(Staged):
    """The large model goes away and comes back."""

    name = "large-model-outage"

    def check(self, options: Namespace) -> None:
        """There is a large model that can be taken away."""
        self._way(options)

    def stages(self, users: int, seconds: float) -> list[Stage]:
        """Before, during, after."""
        self.check(self._options)
        return stages.large_model_outage(users, seconds)

    def enter(self, stage: Stage) -> None:
        """Take it away, or bring it back. Raises NoOutage."""
        record = record_of(self._environment)
        if stage.outage:
            way = self._way(self._options)
            record.begin(stage.name, stage.users, claims=True)
            self._guard = Guard(way.task())
            print(f"large-model-outage: {way.take()}", flush=True)
            return
        guard, self._guard = self._guard, None
        if guard is not None and not guard.release():
            raise NoOutage("the large model is not back")
        record.begin(stage.name, stage.users)

    def _way(self, options: Namespace) -> ByCommand | ByStopping:
        given = self.given
        try:
            host = (options.host or given.host).rstrip("/")
            return outage.way(given.large_port, given.outage_command, given.recovery_command, host)
        except NoOutage as error:
            raise WrongUse(str(error)) from None


def thresholds_of(options: Namespace) -> tuple[float, ...]:
    """The thresholds of a sweep; raises ValueError."""
    return stages.thresholds(options.thresholds) if options.thresholds else stages.THRESHOLDS


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """The shape, and what some of them can be told."""
    parser.add_argument("--shape", choices=tuple(stages.SHAPES), default="steady", help="how the users come and go")
    stages.add_arguments(parser, include_in_web_ui=False)  # commands, and where a token goes


@events.init.add_listener
def connect(environment: Environment, **_: Any) -> None:
    """Choose the shape that was asked for, and see to it that each leaves things as they were."""
    options = environment.parsed_options
    if options is None or isinstance(environment.runner, WorkerRunner):
        return
    # As the command line has them: the form of the web page can set any option, and nobody may run commands through it.
    host = (environment.host or DEFAULT_HOST).rstrip("/")
    given = Namespace(
        host=host,
        token=find_token(),
        admin_url=options.admin_url or host,
        large_port=options.large_port or stages.LARGE_PORT,
        outage_command=options.outage_command,
        recovery_command=options.recovery_command,
    )
    shapes = {shape.name: shape for shape in environment.available_shape_classes.values() if isinstance(shape, Staged)}
    for shape in shapes.values():
        shape.given, shape.runner = given, environment.runner

    def choose(options: Namespace) -> None:
        picked = getattr(options, "shape_class", None)  # of the form, with --class-picker
        if environment.parsed_options.class_picker and environment.web_ui is not None:
            shape = environment.available_shape_classes.get(picked)
        else:
            shape = environment.shape_class = shapes.get(options.shape)
        if isinstance(shape, Staged):
            shape.check(options)

    def leave(**_: Any) -> None:
        for shape in shapes.values():
            shape.leave()

    # Before the users are waited for: their requests may hang on a large model that is away.
    environment.events.test_stopping.add_listener(leave)
    environment.events.quitting.add_listener(leave)
    check_before_a_run(environment, choose)
    if options.headless:
        # Locust's own handler comes only after a headless run with a shape.
        gevent.signal_handler(signal.SIGTERM, lambda: environment.runner and environment.runner.quit())
