"""Locust's web page: the tabs `Gatekeeper` and `Phases`, their numbers as JSON and CSV, and refusals of wrong use."""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"
# Locust's login decorator carries no types.

import io
from argparse import Namespace

from flask import Blueprint, Response, jsonify, request
from locust.web import WebUI

from loadtests.users.choice import WrongUse
from loadtests.users.phases import PHASE_COLUMNS, shown, shown_phase
from loadtests.users.record import Record
from loadtests.users.tally import Row

TITLES = (
    *("Requests", "Items", "Accepted", "Deferred", "Degraded", "Deferral ratio", "Degraded share"),
    *("Labelled", "Joint accuracy", "Small model alone"),
)


def add_pages(web_ui: WebUI, record: Record) -> None:
    """Show what the record has, and hold its checks before a run."""
    assert web_ui.app is not None
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Gatekeeper", "key": "gatekeeper"}, {"title": "Phases", "key": "phases"}],
        "extended_tables": [
            {"key": "gatekeeper", "structure": _columns(Row._fields, TITLES)},
            {"key": "phases", "structure": _columns(tuple(PHASE_COLUMNS), tuple(PHASE_COLUMNS.values()))},
        ],
        "extended_csv_files": [
            {"href": "./gatekeeper/csv", "title": "Download deferral CSV"},
            {"href": "./gatekeeper/phases/csv", "title": "Download phases CSV"},
        ],
    }
    options = web_ui.environment.parsed_options
    pages = Blueprint("gatekeeper", __name__, url_prefix=options.web_base_path if options is not None else None)

    @pages.route("/gatekeeper")
    @web_ui.auth_required_if_enabled
    def as_json() -> Response:
        rows = [row._asdict() for row in record.tally.rows()]
        phases = [row._asdict() for row in record.rows()]
        return jsonify(
            {
                "summary": record.tally.summary(),
                "rows": rows,
                "phases": phases,
                "elsewhere": record.phases.elsewhere(record.tally),
            }
        )

    @pages.route("/gatekeeper/csv")
    @web_ui.auth_required_if_enabled
    def as_csv() -> Response:
        stream = io.StringIO()
        record.tally.write_csv(stream)
        return _download("gatekeeper.csv", stream)

    @pages.route("/gatekeeper/phases/csv")
    @web_ui.auth_required_if_enabled
    def phases_as_csv() -> Response:
        stream = io.StringIO()
        record.phases.write_csv(stream, record.tally)
        return _download("phases.csv", stream)

    @web_ui.app.before_request
    def before_a_run() -> Response | None:
        return refuse_wrong_use() if request.endpoint == "locust.swarm" else None

    @web_ui.auth_required_if_enabled
    def refuse_wrong_use() -> Response | None:
        """A run that cannot be is refused as Locust refuses one: with a message beside the form."""
        try:
            options = _options(web_ui)
            for check in record.checks:
                check(options)
        except WrongUse as wrong:
            return jsonify({"success": False, "message": str(wrong), "host": web_ui.environment.host})
        return None

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        """The page asks for its numbers here, every two seconds; a tab of one's own finds them under extended_stats."""
        if request.endpoint == "locust.request_stats" and response.is_json:
            more = [
                {"key": "gatekeeper", "data": [_shown(row) for row in record.tally.rows()]},
                {"key": "phases", "data": [shown_phase(row) for row in record.rows()]},
            ]
            response.set_data(jsonify({**response.get_json(), "extended_stats": more}).get_data())
        return response

    web_ui.app.register_blueprint(pages)


def _options(web_ui: WebUI) -> Namespace:
    """The options as they will be once Locust has read its form."""
    options = Namespace(**vars(web_ui.environment.parsed_options))
    for key, value in request.form.items():
        if hasattr(options, key):
            setattr(options, key, value)
    options.user_classes = request.form.getlist("user_classes") or options.user_classes
    options.host = request.form.get("host") or web_ui.environment.host
    options.shape_class = request.form.get("shape_class")
    return options


def _columns(keys: tuple[str, ...], titles: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"key": key, "title": title} for key, title in zip(keys, titles, strict=True)]


def _download(name: str, stream: io.StringIO) -> Response:
    disposition = {"content-disposition": f"attachment;filename={name}"}
    return Response(stream.getvalue(), mimetype="text/csv", headers=disposition)


def _shown(row: Row) -> dict[str, str | int]:
    """The numbers as a table shows them."""
    return {key: shown(value) for key, value in row._asdict().items()}
