"""Load on a running edge, and what its gate did with it.

    make loadtest                            a short run in the terminal
    locust -f loadtests/locustfile.py        with Locust's web UI on http://127.0.0.1:8089, its tab `Gatekeeper`

Each user sends its next request as soon as it has an answer, so that users = requests in flight. Locust's failures are
refusals, errors and answers that do not fit the contract; a malformed request must be refused. The deferral ratio
and the degraded share come from the answers' `decision`: in the web UI, at the end of a headless run, under /gatekeeper
as JSON, and with --csv PREFIX in PREFIX_gatekeeper.csv. With workers (--processes N) they are sums over all of them.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"
# Locust's event hooks and its login decorator carry no types.

import io
import random
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.web import WebUI

from loadtests.answers import ContractBroken, Row, Tally, read_answer, read_refusal
from loadtests.sentences import EASY, MALFORMED, ODD

ROUTE = "/v1/classify"
LIST_ITEMS = (2, 8)
ODD_IN_A_LIST = 0.25
REPORT_KEY = "gatekeeper"  # beside Locust's own "stats" and "errors" in a worker's report

tally = Tally()


class Client(FastHttpUser):
    """Somebody's application, which asks what a sentence is about."""

    host = "http://127.0.0.1:8000"
    wait_time = constant(0)
    network_timeout = 30.0
    connection_timeout = 5.0

    @task(12)
    def easy_sentence(self) -> None:
        """One sentence that the small model should be sure of."""
        self._classify("easy", random.choice(EASY))

    @task(3)
    def odd_sentence(self) -> None:
        """One that it should not be sure of."""
        self._classify("odd", random.choice(ODD))

    @task(4)
    def small_list(self) -> None:
        """A few at once, some of them odd."""
        items = random.randint(*LIST_ITEMS)
        self._classify("list", [random.choice(ODD if random.random() < ODD_IN_A_LIST else EASY) for _ in range(items)])

    @task(1)
    def malformed(self) -> None:
        """What must be refused: a 4xx with a problem document is the success."""
        _, body = random.choice(MALFORMED)
        with self.client.post(
            ROUTE,
            data=body,
            headers={"content-type": "application/json"},
            name=f"{ROUTE} (malformed)",
            catch_response=True,
        ) as response:
            if response.status_code == 0:
                return  # no answer at all: Locust reports why
            try:
                read_refusal(response.status_code, response.headers.get("content-type"), response.content)
            except ContractBroken as broken:
                response.failure(str(broken))
            else:
                response.success()

    def _classify(self, kind: str, inputs: str | list[str]) -> None:
        with self.client.post(
            ROUTE, json={"inputs": inputs}, name=f"{ROUTE} ({kind})", catch_response=True
        ) as response:
            if response.status_code != 200:
                if response.ok and response.status_code != 0:
                    response.failure(f"answered with {response.status_code} instead of 200")
                return  # refused or failed: Locust reports it
            try:
                answer = read_answer(response.content, 1 if isinstance(inputs, str) else len(inputs))
            except ContractBroken as broken:
                response.failure(str(broken))
            else:
                tally.add(kind, answer.outputs)


@events.init.add_listener
def connect(environment: Environment, **_: Any) -> None:
    """Report, sum and show the tally, according to what this process is: alone, a master or a worker."""
    hooks = environment.events
    hooks.test_start.add_listener(lambda **_: tally.clear())
    hooks.reset_stats.add_listener(tally.clear)
    if isinstance(environment.runner, WorkerRunner):
        hooks.report_to_master.add_listener(_report)
        return
    hooks.worker_report.add_listener(_merge)
    hooks.quitting.add_listener(_fail_without_answers)
    # `quit` and not `quitting`: only then have all workers sent their last report, and Locust its summary.
    hooks.quit.add_listener(lambda **_: _conclude(environment))
    if environment.web_ui is not None:
        _add_to_web_ui(environment.web_ui)


def _report(data: dict[str, Any], **_: Any) -> None:
    data[REPORT_KEY] = tally.take()


def _merge(data: dict[str, Any], **_: Any) -> None:
    tally.merge(data.get(REPORT_KEY, ()))


def _fail_without_answers(environment: Environment, **_: Any) -> None:
    """A headless run that got no answer whatever has not passed, even where nothing had the time to fail."""
    if environment.web_ui is None and environment.stats.total.num_requests == 0:
        environment.process_exit_code = 1


def _conclude(environment: Environment) -> None:
    print(tally.summary(), flush=True)
    prefix = environment.parsed_options.csv_prefix if environment.parsed_options is not None else None
    if prefix:
        tally.save_csv(Path(f"{prefix}_gatekeeper.csv"))


def _add_to_web_ui(web_ui: WebUI) -> None:
    """The tab `Gatekeeper` with a row for each kind of request, its download, and the same as JSON."""
    assert web_ui.app is not None
    titles = ("Requests", "Items", "Accepted", "Deferred", "Degraded", "Deferral ratio", "Degraded share")
    columns = [{"key": key, "title": title} for key, title in zip(Row._fields, titles, strict=True)]
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Gatekeeper", "key": "gatekeeper"}],
        "extended_tables": [{"key": "gatekeeper", "structure": columns}],
        "extended_csv_files": [{"href": "./gatekeeper/csv", "title": "Download deferral CSV"}],
    }
    options = web_ui.environment.parsed_options
    pages = Blueprint("gatekeeper", __name__, url_prefix=options.web_base_path if options is not None else None)

    @pages.route("/gatekeeper")
    @web_ui.auth_required_if_enabled
    def as_json() -> Response:
        return jsonify({"summary": tally.summary(), "rows": [row._asdict() for row in tally.rows()]})

    @pages.route("/gatekeeper/csv")
    @web_ui.auth_required_if_enabled
    def as_csv() -> Response:
        stream = io.StringIO()
        tally.write_csv(stream)
        disposition = {"content-disposition": "attachment;filename=gatekeeper.csv"}
        return Response(stream.getvalue(), mimetype="text/csv", headers=disposition)

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        """The page asks for its numbers here, every two seconds; a tab of one's own finds them under extended_stats."""
        if request.endpoint == "locust.request_stats" and response.is_json:
            rows = [_shown(row) for row in tally.rows()]
            response.set_data(
                jsonify({**response.get_json(), "extended_stats": [{"key": "gatekeeper", "data": rows}]}).get_data()
            )
        return response

    web_ui.app.register_blueprint(pages)


def _shown(row: Row) -> dict[str, str | int]:
    """The ratios as the table shows them."""
    shown: dict[str, str | int] = {}
    for key, value in row._asdict().items():
        shown[key] = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else value
    return shown
