"""Load on a running edge, and what its gate did with it.

    make loadtest                            a short run in the terminal
    locust -f loadtests/locustfile.py        with Locust's web UI on http://127.0.0.1:8089, its tab `Gatekeeper`
    locust -f loadtests/locustfile.py,loadtests/shapes.py --shape spike          users by a shape: loadtests/shapes.py

Texts or images, as the edge says in GET /v1/models that it takes; or as you name the user class, `TextClient` or
`ImageClient`, on the command line or in --class-picker. Each user sends its next request as soon as it has an answer,
so that users = requests in flight. Locust's failures are refusals, errors and answers that do not fit the contract; a
malformed request must be refused. Deferral ratio, degraded share and joint accuracy come from the answers: in the web
UI, at the end of a headless run, under /gatekeeper as JSON, and with --csv PREFIX in PREFIX_gatekeeper.csv. With
workers (--processes N) they are sums over all of them. An edge that asks for API keys gets the one in
GATEKEEPER_LOAD_KEY. What is sent fits the packaged bundles; for one of your own give examples with --data FILE.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"
# Locust's event hooks and its login decorator carry no types.

import gc
import logging
import random
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import WorkerRunner

from loadtests.common.answers import ContractBroken, read_answer, read_refusal
from loadtests.users.choice import (
    IMAGES,
    KEY_VARIABLE,
    TEXTS,
    Choice,
    WrongUse,
    add_arguments,
    choose,
    served,
)
from loadtests.users.page import add_pages
from loadtests.users.phases import shown
from loadtests.users.record import Record, check_before_a_run, record_of
from loadtests.users.stock import JSON, form, inputs

ROUTE = "/v1/classify"
LIST_ITEMS = (2, 8)
ODD_IN_A_LIST = 0.25
REPORT_KEY = "gatekeeper"  # beside Locust's own "stats" and "errors" in a worker's report

Item = tuple[str | bytes, str | None]


class Client(FastHttpUser):
    """Somebody's application. How often each task is done is in the run's mix."""

    abstract = True
    host = "http://127.0.0.1:8000"
    wait_time = constant(0)
    network_timeout = 30.0
    connection_timeout = 5.0
    takes: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        self.host = (environment.host or self.host).rstrip("/")  # http://edge/ would ask for //v1/classify
        super().__init__(environment)

    def on_start(self) -> None:
        """Find out what to send."""
        self.choice = self._choice()
        self.record = record_of(self.environment)

    @task
    def send_easy(self) -> None:
        """One item that the small model should be sure of."""
        self._send_items("easy", [self.choice.stock.pick("easy")])

    @task
    def send_hard(self) -> None:
        """One whose meaning is as clear, to a human."""
        self._send_items("hard", [self.choice.stock.pick("hard")])

    @task
    def send_odd(self) -> None:
        """One that it should not be sure of."""
        self._send_items("odd", [self.choice.stock.pick("odd")])

    @task
    def send_list(self) -> None:
        """A few at once, some of them odd."""
        odd = ODD_IN_A_LIST if "odd" in self.choice.stock.items else 0.0
        kinds = ["odd" if random.random() < odd else "easy" for _ in range(random.randint(*LIST_ITEMS))]
        self._send_items("list", [self.choice.stock.pick(kind) for kind in kinds])

    @task
    def send_malformed(self) -> None:
        """What must be refused: a 4xx with a problem document is the success."""
        bad = random.choice(self.choice.stock.malformed)
        moment = self.record.phases.moment()
        with self._post("malformed", bad.content_type, bad.body) as response:
            if response.status_code == 0:
                self.record.tally.add_failure(self.record.phases.phase_since(moment))
                return  # no answer at all: Locust reports why
            try:
                read_refusal(response.status_code, response.headers.get("content-type"), response.content)
            except ContractBroken as broken:
                self.record.tally.add_failure(self.record.phases.phase_since(moment))
                response.failure(str(broken))
            else:
                response.success()

    def _send_items(self, kind: str, items: Sequence[Item]) -> None:
        contents = [inputs(content) for content, _ in items]
        document = {"inputs": contents if kind == "list" else contents[0]}
        self._classify(kind, items, json=document)

    def _classify(self, kind: str, items: Sequence[Item], content_type: str = JSON, **body: Any) -> None:
        moment = self.record.phases.moment()
        with self._post(kind, content_type, **body) as response:
            phase = self.record.phases.phase_since(moment)
            try:
                if response.status_code != 200:
                    # Others than these, refusals and failures, Locust reports by itself.
                    if response.ok and response.status_code != 0:
                        response.failure(f"answered with {response.status_code} instead of 200")
                    self.record.tally.add_failure(phase)
                    return
                answer = read_answer(response.content, len(items))
            except ContractBroken as broken:
                self.record.tally.add_failure(phase)
                response.failure(str(broken))
            else:
                labels = [label for _, label in items]
                self.record.tally.add(kind, answer, labels, phase, response.request_meta["response_time"])

    def _post(self, kind: str, content_type: str, data: bytes | None = None, json: Any = None) -> Any:
        headers = self.choice.headers | {"content-type": content_type}
        return self.client.post(
            ROUTE, data=data, json=json, headers=headers, name=f"{ROUTE} ({kind})", catch_response=True
        )

    def _choice(self) -> Choice:
        """What this run's users of this class send; made by the first of them in each process."""
        cls, record = type(self), record_of(self.environment)
        if cls not in record.choices:
            try:
                options = self.environment.parsed_options
                choice, _ = choose(cls.takes, options, served(self.host.rstrip("/"), options.key)[1])
            except WrongUse as wrong:  # on a worker: elsewhere it was checked before
                print(f"loadtest: {wrong}", file=sys.stderr, flush=True)
                self.environment.process_exit_code = 1
                raise StopTest from None
            record.choices[cls] = choice
            cls.tasks = [getattr(cls, f"send_{kind}") for kind, weight in choice.weights.items() for _ in range(weight)]
        return record.choices[cls]


class TextClient(Client):
    """Asks what a sentence is about."""

    takes = TEXTS


class ImageClient(Client):
    """Asks what is in a picture."""

    takes = IMAGES

    @task
    def send_file(self) -> None:
        """A picture as a file in a form."""
        item = self.choice.stock.pick("easy")
        assert isinstance(item[0], bytes)
        content_type, body = form(item[0])
        self._classify("file", [item], content_type, data=body)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """What a run can be told, in a terminal or in the form of the web page."""
    add_arguments(parser, include_in_web_ui=False)  # a page is not to name files of this machine
    parser.add_argument(
        "--key",
        env_var=KEY_VARIABLE,
        include_in_web_ui=False,
        is_secret=True,
        help="the API key to send as a bearer token, where the edge asks for one",
    )


@events.init.add_listener
def connect(environment: Environment, **_: Any) -> None:
    """Report, sum and show the tally, according to what this process is: alone, a master or a worker."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # which has a line for each of its requests
    hooks, record = environment.events, record_of(environment)
    hooks.test_start.add_listener(lambda **_: record.clear())
    hooks.reset_stats.add_listener(record.tally.clear)
    record.listen()
    if isinstance(environment.runner, WorkerRunner):
        hooks.report_to_master.add_listener(lambda data, **_: data.update({REPORT_KEY: record.tally.take()}))
        return
    hooks.worker_report.add_listener(lambda data, **_: REPORT_KEY in data and record.tally.merge(data[REPORT_KEY]))
    hooks.quitting.add_listener(_fail_without_answers)
    # `quit` and not `quitting`: only then have all workers sent their last report, and Locust its summary.
    hooks.quit.add_listener(lambda **_: _conclude(environment, record))
    given_host = environment.host or Client.host
    given_data = environment.parsed_options.data if environment.parsed_options is not None else None
    check_before_a_run(environment, lambda options: _prepare(environment, options, given_host, given_data))
    if environment.web_ui is not None:
        add_pages(environment.web_ui, record)


def _prepare(environment: Environment, options: Namespace, given_host: str, given_data: str | None) -> None:
    """Choose the users that fit the edge. Raises WrongUse."""
    host = (options.host or given_host).rstrip("/")
    if options.key and host != given_host.rstrip("/"):
        raise WrongUse(
            f"the API key of this run goes to {given_host} alone: name another edge with --host, at the start"
        )
    if options.data != given_data:
        raise WrongUse("the file of --data is named at the start, not in the page")
    users = {user.takes: user for user in (TextClient, ImageClient)}
    task_served, labels = served(host, options.key)
    named = list(options.user_classes or ())
    picks = environment.parsed_options.class_picker and environment.web_ui is not None
    if named or picks:
        wanted = task_served or (TEXTS if named == [TextClient.__name__] else IMAGES)
        if named != [users[wanted].__name__]:
            chosen = " and ".join(sorted(named)) or "all user classes"
            raise WrongUse(f"the model at {host} is for {wanted}: choose {users[wanted].__name__}, not {chosen}")
    else:
        wanted = task_served or TEXTS
        environment.user_classes = [users[wanted]]
    choice, warning = choose(wanted, options, labels)
    if warning:
        print(f"loadtest: {warning}", file=sys.stderr, flush=True)
    print(f"{host} is sent {choice.stock.name}", flush=True)


def _fail_without_answers(environment: Environment, **_: Any) -> None:
    """A headless run that got no answer whatever has not passed, even where nothing had the time to fail."""
    if environment.web_ui is None and environment.stats.total.num_requests == 0:
        environment.process_exit_code = environment.process_exit_code or 1


def _conclude(environment: Environment, record: Record) -> None:
    _end_locusts_csv_writer()
    print(record.tally.summary(), flush=True)
    _print_phases(record)
    prefix = environment.parsed_options.csv_prefix if environment.parsed_options is not None else None
    if prefix:
        record.tally.save_csv(Path(f"{prefix}_gatekeeper.csv"))
        if record.rows():
            with Path(f"{prefix}_phases.csv").open("w", newline="", encoding="utf-8") as stream:
                record.phases.write_csv(stream, record.tally)


def _end_locusts_csv_writer() -> None:
    """Locust closes its CSV files after this and leaves the greenlet that writes them: with --processes, which are
    waited for then, it would end with a traceback (2.47)."""
    for found in gc.get_objects():
        if isinstance(found, gevent.Greenlet):
            run = getattr(found, "_run", None)
            if getattr(run, "__name__", "") == "stats_writer":
                found.kill()


def _print_phases(record: Record) -> None:
    rows = record.rows()
    if not rows:
        return
    head = (
        *(record.phases.title, "users", "seconds", "requests", "failures", "requests/s", "items"),
        *("deferral", "degraded", "why", "joint acc.", "small acc.", "p50 ms", "p95 ms", "p99 ms"),
    )
    lines = [head, *(tuple(str(shown(value)) for value in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if elsewhere := record.phases.elsewhere(record.tally):
        print(f"{elsewhere:,} items are in no row: of requests before the first, after the last or across a change")
    sys.stdout.flush()
