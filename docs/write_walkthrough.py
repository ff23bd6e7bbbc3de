"""A walk-through for docs/: everything of compose runs, the large model becomes slow, an operator sees and acts.

    python -m docs.write_walkthrough --output docs/walkthrough   (20 minutes; prometheus, chromium, GATEKEEPER_DATA_DIR)

The services are those of `make compose-check`, Prometheus with the committed scrape interval and rules, the traffic
CLINC150's test sentences, the operator a real Chromium. Writes the log of what happened, screenshots of the console and
pictures of the dashboard's panels, drawn from their own queries. docs/walkthrough.md tells the story around them.
"""

import argparse
import json
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from playwright.sync_api import Page, ViewportSize, expect

from deploy.check import CheckFailed, Missing, Stack, running, stop_cleanly
from deploy.compose import ROOT
from docs.browser import chromium, find_chromium

MODEL = "clinc150-small"
CLASSIFY = "/v1/classify"
RATE_PER_S = 24.0
THREADS = 24
ITEMS = (2, 8)
SLOW_STOPPED_S, SLOW_RUNNING_S = 1.8, 0.1  # the large model gets a twentieth of its time
SCREEN: ViewportSize = {"width": 1200, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
SEEN_WITHIN_S = 30.0
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "overview.json"
PANELS = (
    *("Deferral ratio over time", "Threshold and policy version", "Items by decision"),
    *("Latency by route", "Latency of calls", "Outside the latency objective"),
)


class Traffic:
    """Requests of a few sentences to both edges, as many as there would be without any trouble."""

    def __init__(self, urls: Sequence[str], sentences: Sequence[str]) -> None:
        self._urls = urls
        self._sentences = sentences
        self._stop = threading.Event()
        self.answered = self.failed = 0
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        chance = random.Random()
        with httpx.Client(timeout=30.0, trust_env=False) as client:
            while not self._stop.wait(chance.expovariate(RATE_PER_S / THREADS)):
                inputs = chance.choices(self._sentences, k=chance.randint(*ITEMS))
                try:
                    status = client.post(
                        f"{chance.choice(self._urls)}/v1/classify", json={"inputs": inputs}
                    ).status_code
                except httpx.TransportError:
                    status = 0
                with self._counting:
                    self.answered += status == 200
                    self.failed += status != 200


class Slowness:
    """A process that is stopped most of the time: what a machine without enough processors does."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let it run again."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            os.kill(self._pid, signal.SIGSTOP)
            time.sleep(SLOW_STOPPED_S)
            os.kill(self._pid, signal.SIGCONT)
            self._stop.wait(SLOW_RUNNING_S)


class Prometheus:
    """What an operator asks it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20.0, trust_env=False)

    def value(self, query: str) -> float | None:
        """The value of an instant query; of several routes the classify route's."""
        found = self._client.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
        values = [one["value"][1] for one in found if one["metric"].get("route", CLASSIFY) == CLASSIFY]
        return float(values[0]) if values else None

    def alerts(self) -> dict[str, str]:
        """Alerts that are pending or firing."""
        found = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        states: dict[str, str] = {}
        for alert in found:
            name = alert["labels"]["alertname"]
            if states.get(name) != "firing":
                states[name] = alert["state"]
        return states

    def series(self, query: str, begin: float, end: float) -> list[dict[str, Any]]:
        """A range query, every five seconds."""
        asked = {"query": query, "start": str(begin), "end": str(end), "step": "5"}
        found: list[dict[str, Any]] = self._client.post("/api/v1/query_range", data=asked).json()["data"]["result"]
        return found


class Log:
    """What happened, with the time."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.marks: list[tuple[float, str]] = []

    def __call__(self, text: str, mark: str = "") -> None:
        line = f"{datetime.now(UTC):%H:%M:%S}  {text}"
        print(line, flush=True)
        self.lines.append(line)
        if mark:
            self.marks.append((time.time(), mark))


class Walk:
    """The stack, its traffic and its operator."""

    def __init__(self, stack: Stack, token: str, page: Page, output: Path, log: Log, pace: float) -> None:
        self.stack, self.token, self.page, self.output, self.log = stack, token, page, output, log
        self.pace = pace
        self.prometheus = Prometheus(stack.url("prometheus"))
        self._alerts: dict[str, str] = {}

    def watch(self, minutes: float, until: str = "") -> None:
        """Time passes; changes of alerts are logged. Ends early when the alert `until` fires, or `-NAME` has ended."""
        ends = time.monotonic() + minutes * 60 / self.pace
        while time.monotonic() < ends:
            alerts = self.prometheus.alerts()
            for name in sorted(alerts.keys() | self._alerts.keys()):
                state = alerts.get(name, "over")
                if state != self._alerts.get(name, "over"):
                    self.log(f"alert {name}: {state}", f"{name} {state}" if state != "pending" else "")
            self._alerts = alerts
            if until and (alerts.get(until) == "firing" if until[0] != "-" else until[1:] not in alerts):
                return
            time.sleep(1.0)

    def tell(self, what: str) -> None:
        """The numbers of the moment, by the dashboard's queries."""
        numbers = {
            "deferral ratio": (panel_query("Deferral ratio over time", 0), ".1%"),
            "p50 of a call": (panel_query("Latency of calls", 0), ".3f"),
            "p95 of classify": (panel_query("Latency by route", 1), ".3f"),
            "outside the objective, 5 min": (panel_query("Outside the latency objective", 0), ".1%"),
        }
        told = []
        for name, (query, form) in numbers.items():
            value = self.prometheus.value(query)
            told.append(f"{name} {'unknown' if value is None else format(value, form)}")
        self.log(f"{what}: {', '.join(told)}")

    def picture(self, name: str) -> None:
        """A screenshot of the console."""
        self.page.screenshot(path=self.output / f"{name}.png", full_page=True)

    def seen_in_prometheus(self, threshold: float, since: float) -> None:
        """Wait until both edges' threshold has been scraped, and say how long that took."""
        query = f'count(gatekeeper_threshold{{model="{MODEL}"}} == {threshold})'
        deadline = time.monotonic() + SEEN_WITHIN_S
        while self.prometheus.value(query) != 2.0:
            if time.monotonic() > deadline:
                raise CheckFailed(f"Prometheus does not have the threshold {threshold:g} after {SEEN_WITHIN_S:g} s")
            time.sleep(0.1)
        seconds = time.time() - since
        self.log(f"Prometheus has the threshold {threshold:g} of both edges {seconds:.1f} s later (scraped every 5 s)")


def main(argv: list[str] | None = None) -> int:
    """Run it and write the pictures."""
    parser = argparse.ArgumentParser(
        "docs.write_walkthrough", description="The large model becomes slow: a walk-through, for docs/."
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "walkthrough")
    parser.add_argument("--pace", type=float, default=1.0, help="10: a tenth of the time, too short for the alerts")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    program, sentences = find_chromium(), _sentences()
    if program is None or sentences is None:
        print("walkthrough: chromium and GATEKEEPER_DATA_DIR with clinc150/ are needed", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    stop_cleanly()
    token, log = secrets.token_urlsafe(16), Log()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="walkthrough-") as folder,
            running(token, Path(folder), lambda text: log(text.split(" at http")[0])) as stack,
            chromium(program) as browser,
        ):
            page = browser.new_page(viewport=SCREEN, color_scheme="light")
            _live(Walk(stack, token, page, output, log, arguments.pace), sentences)
    except (CheckFailed, Missing) as error:
        print(f"walkthrough: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    (output / "log.txt").write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    return 0


def _live(walk: Walk, sentences: Sequence[str]) -> None:
    began = time.time()
    edges = [walk.stack.url("edge-1"), walk.stack.url("edge-2")]
    traffic = Traffic(edges, sentences)
    traffic.start()
    walk.log(f"traffic begins: {RATE_PER_S:g} requests/s of {ITEMS[0]} to {ITEMS[1]} sentences, to both edges")
    walk.page.goto(f"{edges[0]}/console")
    walk.page.get_by_label("Admin token").fill(walk.token)
    walk.page.keyboard.press("Enter")
    expect(walk.page.locator("#token-message")).to_have_text("Token accepted, for this tab.")
    walk.watch(3.0)
    walk.tell("all is well")
    walk.picture("1-all-is-well")

    walk.log("the large model becomes slow (its process runs a twentieth of the time)", "large model slow")
    slowness = Slowness(walk.stack.processes["large"].pid)
    walk.watch(1.5)
    walk.tell("a minute and a half later")
    walk.watch(15.0, until="LatencyBudgetBurnsFast")
    walk.tell("the alert")
    walk.picture("2-slow")
    _defer_less(walk)

    slowness.end()
    walk.log("the large model is quick again", "large model quick")
    walk.watch(1.0)
    _roll_back(walk)
    walk.watch(8.0, until="-LatencyBudgetBurnsFast")
    walk.watch(1.0)
    walk.tell("the end")
    walk.picture("5-rolled-back")
    traffic.stop()
    walk.log(f"{traffic.answered:,} requests answered with 200, {traffic.failed} not")
    for number, title in enumerate(PANELS, start=1):
        _draw(walk, title, began, time.time(), walk.output / f"panel-{number}.png")


def _defer_less(walk: Walk) -> None:
    """What the operator does while the large model is slow."""
    page, log = walk.page, walk.log
    _drag_to(page, 0.3)
    threshold = float(page.locator("#threshold").input_value())
    expect(page.locator("#row-recent-ratio td").nth(2)).not_to_have_text("±0.0 points")
    log(f"the operator drags the threshold to {threshold:g} and reads what would happen, now / then / change:")
    for row in ("row-expected-ratio", "row-accuracy", "row-recent-ratio"):
        name = page.locator(f"#{row} th").text_content()
        told = " / ".join(page.locator(f"#{row} td").all_text_contents()).replace("\xa0", " ")
        log(f"    {name}: {told}")
    walk.picture("3-preview")
    page.emulate_media(color_scheme="dark")
    walk.picture("3-preview-dark")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)
    walk.picture("3-preview-phone")
    page.set_viewport_size(SCREEN)
    page.get_by_label("Note for the next person").fill("large model slow: defer only what is hopeless")
    page.get_by_role("button", name="Apply").click()
    applied = time.time()
    expect(page.locator("#change-message")).to_contain_text("is in force")
    log(f"Apply: {page.locator('#change-message').text_content()}", f"threshold {threshold:g}")
    walk.seen_in_prometheus(threshold, applied)
    walk.watch(3.0)
    walk.tell("three minutes later")
    walk.picture("4-applied")


def _roll_back(walk: Walk) -> None:
    """One click on the version that was there before."""
    rows = walk.page.locator("#history tbody tr")
    rows.nth(1).get_by_role("button").click()
    rolled_back = time.time()
    expect(walk.page.locator("#history-message")).to_contain_text("is back")
    walk.log(f"one click: {walk.page.locator('#history-message').text_content()}", "rollback")
    walk.seen_in_prometheus(float(walk.page.locator("#threshold").input_value()), rolled_back)


def _drag_to(page: Page, value: float) -> None:
    knob, plot = page.locator("#knob").bounding_box(), page.locator("#plot").bounding_box()
    assert knob is not None
    assert plot is not None
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(plot["x"] + 8 + (plot["width"] - 16) * value, plot["y"] + 60, steps=10)
    page.mouse.up()


def panel_query(title: str, number: int, *, window: str = "1m") -> str:
    """A panel's query with the dashboard's variables filled in as for one model and all replicas."""
    panel = next(
        panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["title"] == title
    )
    query: str = panel["targets"][number]["expr"]
    for name, value in {"__rate_interval": window, "__range": "1h", "model": MODEL, "replica": ".*"}.items():
        query = query.replace(f"${name}", value)
    return query


def _draw(walk: Walk, title: str, begin: float, end: float, path: Path) -> None:
    """A panel's series over that time, with what happened."""
    panel = next(
        panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["title"] == title
    )
    figure = Figure(figsize=(9.0, 3.1), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, target in enumerate(panel["targets"]):
        for series in walk.prometheus.series(panel_query(title, number), begin, end):
            names = series["metric"]
            legend = re.sub(
                r"\{\{(\w+)\}\}", lambda found, names=names: _short(names.get(found[1], "")), target["legendFormat"]
            )
            if names.get("route", CLASSIFY) != CLASSIFY:
                continue
            moments = [datetime.fromtimestamp(float(moment), UTC) for moment, _ in series["values"]]
            axes.plot(moments, [float(value) for _, value in series["values"]], label=legend, linewidth=1.4)
    for moment, mark in walk.log.marks:
        axes.axvline(datetime.fromtimestamp(moment, UTC), color="0.6", linewidth=0.8, linestyle=":")
        axes.text(
            datetime.fromtimestamp(moment, UTC),
            1.0,
            f" {mark}",
            rotation=90,
            fontsize=6.5,
            va="top",
            ha="right",
            transform=axes.get_xaxis_transform(),
            color="0.35",
        )
    axes.set_title(f"{title} ({_unit(panel)})", loc="left", fontsize=10)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="upper left", ncols=2)
    figure.savefig(path)


def _unit(panel: dict[str, Any]) -> str:
    units = {"percentunit": "share", "s": "seconds", "cps": "per second", "reqps": "per second", "none": "value"}
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    return units.get(unit, unit)


def _short(value: str) -> str:
    return value.replace("127.0.0.1:", ":")


def _sentences() -> list[str] | None:
    """CLINC150's in-scope test sentences."""
    path = Path(os.environ.get("GATEKEEPER_DATA_DIR", ".")) / "clinc150" / "data_full.json"
    if not path.is_file():
        return None
    return [text for text, _ in json.loads(path.read_text(encoding="utf-8"))["test"]]


if __name__ == "__main__":
    mpl.rcParams["font.family"] = "DejaVu Sans"
    sys.exit(main())
