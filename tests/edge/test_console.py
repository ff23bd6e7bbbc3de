"""The console in a real Chromium, on a real edge: what an operator does with it, and what must not happen.

Every test fails on an error in the page's script, on a violation of its content security policy and on a dialog.

One file because all share one browser and one edge, started once.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support.processes import TOKEN, Service, admin, eventually, free_port, spawn, spawn_edge, stopping

from docs.browser import chromium, find_chromium

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
    pytest.mark.timeout(120),
]
ODD = "asdf qwer zxcv"
EASY = "what is my checking account balance"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>" + "'\"&amp; \u202e 🦆"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def own_edge(tmp_path_factory: pytest.TempPathFactory, large: Service) -> Iterator[Service]:
    """An edge whose policy these tests may change."""
    service = spawn_edge(tmp_path_factory.mktemp("console"), large.url)
    with stopping(service):
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with chromium(PROGRAM) as browser:
        yield browser


class Operator:
    """Somebody with a browser. What went wrong in the page is in `faults`."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.faults: list[str] = []
        self.expected = ["net::ERR_"]  # an edge that is stopped under an open page

    def opens(self, edge: Service, **context: Any) -> Page:
        page = self._browser.new_context(**context).new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.goto(f"{edge.url}/console")
        expect(page.locator("#version")).to_have_text(re.compile(r"version \d+"))
        return page

    def signs_in(self, edge: Service, **context: Any) -> Page:
        page = self.opens(edge, **context)
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#token-message")).to_have_text("Token accepted, for this tab.")
        return page

    def may_see(self, pattern: str) -> None:
        """Chromium writes a failed request into its console; here one is meant to fail."""
        self.expected.append(pattern)


@pytest.fixture
def operator(browser: Browser) -> Iterator[Operator]:
    operator = Operator(browser)
    yield operator
    for context in browser.contexts:
        context.close()
    assert [one for one in operator.faults if not any(re.search(known, one) for known in operator.expected)] == []


@pytest.fixture
def api(own_edge: Service) -> Iterator[httpx.Client]:
    """The same edge over HTTP; its policy begins at a threshold of 0.5."""
    with httpx.Client(base_url=own_edge.url, timeout=20.0) as client:
        fields = {"threshold": 0.5, "deferral": "on", "on_remote_failure": "degrade", "note": "where the test begins"}
        assert admin(client, "PATCH", "policy", json=fields).status_code == 200
        client.post("/v1/classify", json={"inputs": [EASY, ODD]})
        yield client


def policy(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = admin(client, "GET", "policy").json()
    return found


def cells(page: Page, row: str) -> list[str]:
    return [text.replace("\xa0", " ") for text in page.locator(f"#{row} td").all_text_contents()]


def test_drag_preview_apply(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    """The line is dragged, what would happen is shown and is what the API says, and Apply makes it so."""
    page = operator.signs_in(own_edge)
    expect(page.locator("#row-accuracy td").nth(1)).to_have_text(re.compile("%"))
    knob, plot = page.locator("#knob").bounding_box(), page.locator("#plot").bounding_box()
    assert knob is not None
    assert plot is not None
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.9, plot["y"] + 40, steps=8)
    page.mouse.up()
    expect(page.locator("#threshold")).to_have_value(re.compile(r"^0\.9\d*$"))
    threshold = float(page.locator("#threshold").input_value())
    assert policy(api)["threshold"] == 0.5, "nothing changes before Apply"

    expected = admin(api, "POST", "policy/preview", json={"threshold": threshold}).json()
    then = f"{100 * expected['proposed']['expected_deferral_ratio']:.1f} %"
    expect(page.locator("#row-expected-ratio td").nth(1)).to_have_text(then.replace(" ", "\xa0"))
    now = f"{100 * expected['current']['expected_joint_accuracy']:.1f} %"
    assert cells(page, "row-accuracy")[:2] == [now, f"{100 * expected['proposed']['expected_joint_accuracy']:.1f} %"]
    assert cells(page, "row-recent-ratio")[1] == f"{100 * expected['proposed']['recent_deferral_ratio']:.1f} %"

    page.get_by_label("Note for the next person").fill("ünïcode & <b>why</b>")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#change-message")).to_contain_text("is in force")
    applied = policy(api)
    assert (applied["threshold"], applied["note"]) == (threshold, "ünïcode & <b>why</b>")
    expect(page.locator("#version")).to_have_text(f"version {applied['version']}")
    first = page.locator("#history tbody tr").first
    expect(first).to_have_attribute("aria-current", "true")
    expect(first.locator("td").nth(4)).to_have_text("ünïcode & <b>why</b>")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()


def test_rollback_is_one_click(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    before = policy(api)
    admin(api, "PATCH", "policy", json={"threshold": 0.9, "deferral": "off", "note": "a mistake"})
    page = operator.signs_in(own_edge)
    page.get_by_role("button", name=f"Roll back to {before['version']}", exact=True).click()
    expect(page.locator("#history-message")).to_contain_text(f"Version {before['version']} is back")
    after = policy(api)
    assert {name: after[name] for name in ("threshold", "deferral")} == {"threshold": 0.5, "deferral": "on"}
    assert after["version"] == before["version"] + 2
    expect(page.locator("#threshold")).to_have_value("0.5")


def test_a_wrong_token_is_told_and_changes_nothing(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    operator.may_see("401")
    before = policy(api)
    page = operator.opens(own_edge)
    expect(page.locator("#preview-message")).to_have_text("Enter the admin token to see what a change would do.")
    expect(page.locator("#ratio")).to_have_text(re.compile("%"))  # to look at, no token is needed
    page.get_by_label("Admin token").fill("not-the-token")
    page.keyboard.press("Enter")
    expect(page.locator("#token-message")).to_have_text("This token was refused.")
    page.locator("#threshold").fill("0.9")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    expect(page.locator("#history")).to_be_hidden()
    assert policy(api) == before
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#token-message")).to_have_text("Token accepted, for this tab.")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()


@pytest.mark.slow
def test_the_token_stays_with_the_tab_until_forgotten(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    page = operator.signs_in(own_edge)
    page.reload()
    expect(page.locator("#token-message")).to_have_text("Token accepted, for this tab.")
    page.get_by_role("button", name="Forget it").click()
    page.reload()
    expect(page.locator("#preview-message")).to_have_text("Enter the admin token to see what a change would do.")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.slow
def test_a_change_by_somebody_else_meanwhile(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    """A page that has not seen it yet does not overwrite it; one that has goes on from there."""
    operator.may_see("412")
    page = operator.signs_in(own_edge)
    page.locator("#threshold").fill("0.9")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()
    on_their_way: list[Route] = []

    def delay(route: Route) -> None:
        on_their_way.append(route)

    page.route("**/admin/v1/policy", delay)
    page.get_by_role("button", name="Apply").click()
    eventually(lambda: page.wait_for_timeout(50) or on_their_way, "the change is on its way")
    page.route("**/policy/preview", lambda _: None)  # never answered: it would tell of the other change
    page.route("**/console/state", lambda route: route.abort())  # as if its next look were still to come
    expect(page.locator("#lost")).to_be_visible()
    version = admin(api, "PATCH", "policy", json={"threshold": 0.3, "note": "somebody else"}).json()["version"]
    # What was on its way arrives late and is refused. The page knows that it is cut off and offers nothing.
    for route in on_their_way:
        route.continue_()
    expect(page.locator("#change-message")).to_contain_text("Somebody else has changed the policy")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    assert policy(api)["threshold"] == 0.3
    page.unroute("**/admin/v1/policy")
    page.unroute("**/policy/preview")
    page.unroute("**/console/state")
    expect(page.locator("#version")).to_have_text(f"version {version}")
    expect(page.locator("#threshold")).to_have_value("0.9")  # what was being done is not lost
    page.get_by_role("button", name="Apply").click()
    # Not merely "is in force": the message about the other change says that too.
    expect(page.locator("#change-message")).to_have_text(re.compile(r"^Version \d+ is in force: threshold 0\.9"))
    assert policy(api)["threshold"] == 0.9


@pytest.mark.slow
def test_a_lost_connection_is_told_and_heals(tmp_path: Path, large: Service, operator: Operator) -> None:
    edge = spawn_edge(tmp_path, large.url, port := free_port())
    with stopping(edge):
        edge.wait_ready()
        page = operator.signs_in(edge)
        page.locator("#threshold").fill("0.9")
        expect(page.get_by_role("button", name="Apply")).to_be_enabled()
        edge.kill()
        expect(page.locator("#lost")).to_contain_text("does not answer since")
        expect(page.get_by_role("button", name="Apply")).to_be_disabled()
        again = spawn_edge(tmp_path, large.url, port)
        with stopping(again):
            again.wait_ready()
            expect(page.locator("#lost")).to_be_hidden(timeout=15_000)
            expect(page.locator("#threshold")).to_have_value("0.9")
            page.get_by_role("button", name="Apply").click()
            expect(page.locator("#change-message")).to_contain_text("is in force")


@pytest.mark.slow
def test_another_bundle_on_the_same_address(tmp_path: Path, bundles: Path, operator: Operator) -> None:
    """An open page forgets the draft and the history of the gate that is gone; both gates are at version 1."""
    edge = spawn_edge(tmp_path, NOBODY, port := free_port())
    with stopping(edge):
        edge.wait_ready()
        page = operator.signs_in(edge)
        page.locator("#threshold").fill("0.99")
        expect(page.get_by_role("button", name="Apply")).to_be_enabled()
        edge.kill()
        other = spawn_edge(tmp_path, NOBODY, port, BUNDLE=str(bundles / "fashion-mnist-small"))
        with stopping(other), httpx.Client(base_url=other.url, timeout=10.0) as client:
            other.wait_ready()
            expect(page.locator("#model")).to_have_text("fashion-mnist-small", timeout=15_000)
            now = policy(client)
            assert now["version"] == 1
            expect(page.locator("#threshold")).to_have_value(str(now["threshold"]))
            expect(page.get_by_role("button", name="Apply")).to_be_disabled()
            expect(page.locator("#history tbody tr")).to_have_count(1)
            expect(page.locator("#history tbody tr").first).to_contain_text(f"{now['threshold']:.4g}")
            expect(page.get_by_label("An image")).to_be_visible()


def test_a_table_without_an_edge_to_ask_is_not_applied(
    own_edge: Service, api: httpx.Client, operator: Operator
) -> None:
    """While what would happen is being asked, and where it cannot be told, there is nothing to apply."""
    page = operator.signs_in(own_edge)
    expect(page.locator("#row-accuracy td").nth(1)).to_have_text(re.compile("%"))
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        waiting.append(route)

    page.route("**/policy/preview", hold)
    page.locator("#threshold").fill("0.77")
    expect(page.locator("#preview")).to_have_class("stale")
    eventually(lambda: page.wait_for_timeout(50) or waiting, "a preview is asked for")
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    for route in waiting:
        route.continue_()
    page.unroute("**/policy/preview")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()
    expect(page.locator("#preview")).not_to_have_class("stale")


def test_untrusted_text_is_never_markup(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    """A hostile note is shown letter by letter, and a hostile sentence is a sentence."""
    note = (HOSTILE * 10)[:500]
    admin(api, "PATCH", "policy", json={"threshold": 0.4, "note": note})
    page = operator.signs_in(own_edge)
    expect(page.locator("#history tbody tr").first.locator("td").nth(4)).to_have_text(re.compile("<img src=x onerror"))
    assert page.locator("#history tbody tr").first.locator("td").nth(4).text_content() == note
    assert page.locator("#history img, #history script, #history b").count() == 0
    page.locator("#try-text").fill(HOSTILE)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answer h3")).not_to_be_empty()
    assert page.title() == "Gatekeeper console"


def test_the_content_security_policy_holds(own_edge: Service, operator: Operator) -> None:
    """Nothing inline, nothing from elsewhere; and the browser itself refuses to make markup of a text."""
    answer = httpx.get(f"{own_edge.url}/console")
    rules = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<style|style=| on\w+=|<script(?! src=\"console/page\.js\")", answer.text)
    operator.may_see("TrustedHTML|Trusted Type|[Cc]ontent [Ss]ecurity [Pp]olicy")
    page = operator.opens(own_edge)
    refused = """() => { try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); return 'rendered' }
                         catch (error) { return error.name } }"""
    assert page.evaluate(refused) == "TypeError"


def test_everything_can_be_done_by_keyboard(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    page = operator.opens(own_edge)
    keys = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#token")
    keys.type(TOKEN)
    keys.press("Enter")
    expect(page.locator("#token-message")).to_have_text("Token accepted, for this tab.")
    tab_to("#handle")
    for key in ("Home", "PageUp", "PageUp", "ArrowRight", "ArrowUp", "ArrowLeft", "Shift+ArrowRight"):
        keys.press(key)
    slider = page.get_by_role("slider", name="Threshold")
    expect(slider).to_have_attribute("aria-valuenow", "0.211")
    tab_to("#deferral")
    keys.press("ArrowDown")
    tab_to("#note")
    keys.type("without a mouse")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()  # the table tells of this very change
    keys.press("Enter")
    expect(page.locator("#change-message")).to_contain_text("is in force")
    applied = policy(api)
    assert (applied["threshold"], applied["deferral"], applied["note"]) == (0.211, "off", "without a mouse")
    tab_to("#history button")
    keys.press("Enter")
    expect(page.locator("#history-message")).to_contain_text("is back")
    expect(page.locator("#history-message")).to_be_focused()  # the button is gone, the place is not


SCREENS = [(1280, 800), (1440, 900), (390, 844)]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_the_page_fits_the_screen(
    own_edge: Service, api: httpx.Client, operator: Operator, width: int, height: int, scheme: str
) -> None:
    """No number is alone on a row, nothing is cut or wider than the screen, and Apply needs no scrolling on a desk."""
    page = operator.signs_in(own_edge, viewport={"width": width, "height": height}, color_scheme=scheme)
    page.locator("#threshold").fill("0.7")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()
    expect(page.locator("#history tbody tr").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width > 1000:
        assert page.evaluate("document.getElementById('apply').getBoundingClientRect().bottom") < 800
    # Every row of numbers begins and ends where the others do.
    rows = page.evaluate("""() => {
        const rows = {};
        for (const one of document.querySelectorAll('#numbers > div')) {
            const { top, left, right } = one.getBoundingClientRect();
            (rows[Math.round(top)] ??= []).push([left, right]);
        }
        return Object.values(rows).map(cells =>
            [Math.min(...cells.map(cell => cell[0])), Math.max(...cells.map(cell => cell[1]))].map(Math.round))
    }""")
    assert len(rows) == (2 if width > 1000 else 3)
    assert len({tuple(row) for row in rows}) == 1, rows
    cut = """() => [...document.querySelectorAll('select')].flatMap(one => {
        const style = getComputedStyle(one), pen = document.createElement('canvas').getContext('2d');
        pen.font = style.font;
        const room = one.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 20; // its arrow
        return [...one.options].map(option => option.text).filter(text => pen.measureText(text).width > room);
    })"""
    assert page.evaluate(cut) == []
    for scale in ("#trend-high", "#trend-frame .scale"):
        expect(page.locator(scale).first).to_contain_text("%")


def test_the_bar_of_the_threshold_is_of_both_colours(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    """They meet at the line, so that the colours say the same as the ratio."""
    page = operator.signs_in(own_edge)
    page.locator("#threshold").fill("0.512")
    expect(page.locator("#handle")).to_have_attribute("aria-valuenow", "0.512")
    meet = page.evaluate("""() => {
        const edge = (side, take) => Math[take](...[...document.querySelectorAll(`#bars .${side}`)].map(bar =>
            Number(bar.getAttribute('x')) + (side === 'below' ? Number(bar.getAttribute('width')) : 0)));
        const line = Number(document.getElementById('line-draft').getAttribute('x1'));
        return [edge('below', 'max'), edge('above', 'min'), line];
    }""")
    assert meet == pytest.approx([meet[2]] * 3, abs=0.01)


@pytest.mark.slow
def test_calls_saved_are_counted_from_the_start(tmp_path: Path, large: Service, operator: Operator) -> None:
    """Beyond the last 1,000 items, without those that a request sent its own way; few items are called few."""
    edge = spawn_edge(tmp_path, large.url)
    with stopping(edge), httpx.Client(base_url=edge.url, timeout=20.0) as client:
        edge.wait_ready()
        page = operator.opens(edge)
        expect(page.locator("#saved-aside")).to_contain_text("no items yet since the start")
        client.post("/v1/classify", json={"inputs": [EASY, EASY, EASY, ODD]})
        expect(page.locator("#saved")).to_have_text("3 · 75.0\xa0%")
        expect(page.locator("#saved-aside")).to_have_text(re.compile(r"^of 4 items since the start, \d+ s ago$"))
        expect(page.locator("#ratio-aside")).to_have_text("of only 4 items: by chance anything from 5 to 70\xa0%")
        for _ in range(5):
            client.post("/v1/classify", json={"inputs": [EASY] * 250})
        client.post("/v1/classify", json={"inputs": [EASY] * 9, "parameters": {"route": "small"}})
        expect(page.locator("#saved")).to_have_text("1,253 · 99.9\xa0%")
        expect(page.locator("#ratio-aside")).to_have_text("of the last 1,000 items")
        assert client.get("/console/state").json()["savings"] == {"items": 1254, "calls_saved": 1253}


def test_on_a_phone(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    """Nothing is wider than the screen, what is touched is large enough, and the line follows a finger."""
    page = operator.signs_in(own_edge, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect(page.locator("#history tbody tr").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = """() => [...document.querySelectorAll('button, input, select, textarea, #grip')]
        .filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 44)
        .map(one => one.id || one.textContent)"""
    assert page.evaluate(small) == []
    page.locator("#knob").scroll_into_view_if_needed()
    box = page.locator("#knob").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in (20, 40, 60, 80):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + step, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#threshold")).to_have_value(re.compile(r"^0\.7"))


def test_it_is_dark_where_the_reader_likes_it_dark(own_edge: Service, operator: Operator) -> None:
    colours = "() => { const own = getComputedStyle(document.body); return [own.color, own.backgroundColor] }"

    def lightness(colour: str) -> int:
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    for scheme, dark in (("light", False), ("dark", True)):
        ink, paper = operator.opens(own_edge, color_scheme=scheme).evaluate(colours)
        assert (lightness(ink) > lightness(paper)) is dark
        assert abs(lightness(ink) - lightness(paper)) > 500


def test_what_the_edge_refuses_is_said_in_its_words(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    operator.may_see("422")
    page = operator.signs_in(own_edge)
    page.locator("#threshold").fill("1.5")
    expect(page.locator("#preview-message")).to_have_text(
        "threshold must be between 0 and 1, the range of this bundle's score."
    )
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    assert cells(page, "row-accuracy") == ["", "", ""], "no numbers of another threshold beside it"
    page.get_by_role("button", name="Discard").click()
    expect(page.locator("#threshold")).to_have_value("0.5")


def test_try_it_says_who_answers_and_why(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    page = operator.opens(own_edge)
    for text, who in (
        (EASY, "The small model answered: it was sure enough."),
        (ODD, "The large model answered: the small one was not sure enough"),
    ):
        page.get_by_label("A text").fill(text)
        page.get_by_role("button", name="Classify").click()
        expect(page.locator("#answer .who")).to_contain_text(who)
    expect(page.locator("#answer")).to_contain_text("The small model would have said")
    page.get_by_label("A text").fill("")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answer")).to_have_text("Write a text first.")


@pytest.mark.slow
def test_the_live_ratio_follows_the_traffic(own_edge: Service, api: httpx.Client, operator: Operator) -> None:
    page = operator.opens(own_edge)
    for _ in range(4):
        api.post("/v1/classify", json={"inputs": [ODD] * 250})
    expect(page.locator("#ratio")).to_have_text("100.0\xa0%")
    expect(page.locator("#shares-key .deferred")).to_have_text("deferred 1,000")
    expect(page.locator("#drift")).to_be_visible()
    assert page.locator("#trend .live").get_attribute("d")


@pytest.mark.slow
def test_without_a_token_or_a_large_model_it_still_shows(tmp_path: Path, operator: Operator) -> None:
    """No admin API, nobody to defer to, API keys needed: the page says so and stays useful."""
    operator.may_see("401")
    environment = {"POLICY_PATH": str(tmp_path / "policy.db"), "REMOTE_URL": NOBODY, "BREAKER_OPEN_S": "60"}
    environment |= {"API_KEYS": f"tester:{'a' * 64}"}
    edge = spawn("serve", tmp_path / "edge.log", **environment)
    with stopping(edge):
        edge.wait_ready()
        page = operator.opens(edge)
        expect(page.locator("#token-message")).to_contain_text("started without GATEKEEPER_ADMIN_TOKEN")
        expect(page.get_by_role("button", name="Use it")).to_be_disabled()
        page.get_by_label("A text").fill(EASY)
        page.get_by_role("button", name="Classify").click()
        expect(page.locator("#answer")).to_contain_text("API key")
        expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.slow
def test_with_an_admin_port_all_of_it_is_there(tmp_path: Path, large: Service, operator: Operator) -> None:
    """Also the box to try it, whose requests may only go where the page came from."""
    edge = spawn_edge(tmp_path, large.url, ADMIN_PORT=str(admin_port := free_port()))
    with stopping(edge):
        edge.wait_ready()
        page = operator.signs_in(Service(edge.process, admin_port, edge.log))
        page.get_by_label("A text").fill(EASY)
        page.get_by_role("button", name="Classify").click()
        expect(page.locator("#answer .who")).to_contain_text("The small model answered")


@pytest.mark.slow
def test_an_image_can_be_tried(image_edge: Service, tmp_path: Path, operator: Operator) -> None:
    from PIL import Image

    Image.new("L", (28, 28), 200).save(tmp_path / "grey.png")
    page = operator.opens(image_edge)
    page.get_by_label("An image").set_input_files(tmp_path / "grey.png")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answer .who")).to_contain_text("model answered")


@pytest.mark.slow
def test_a_breaker_that_opens_is_seen(tmp_path: Path, operator: Operator) -> None:
    edge = spawn_edge(tmp_path, NOBODY, BREAKER_OPEN_S="60")
    with stopping(edge), httpx.Client(base_url=edge.url, timeout=20.0) as client:
        edge.wait_ready()
        page = operator.opens(edge)

        def open_() -> bool:
            client.post("/v1/classify", json={"inputs": ODD})
            return bool(httpx.get(f"{edge.url}/console/state").json()["breaker_open"])

        eventually(open_, "the breaker opens")
        expect(page.locator("#state-remote")).to_contain_text("breaker open")
        expect(page.locator("#endpoints li")).to_contain_text("breaker open, not asked for now")
        expect(page.locator("#shares-key .degraded")).not_to_have_text("degraded 0")


@pytest.mark.slow
def test_deferrals_that_degrade_are_seen_whatever_the_reason(tmp_path: Path, operator: Operator) -> None:
    """The breaker stays closed here: the page must not look well all the same."""
    edge = spawn_edge(tmp_path, NOBODY, BREAKER_FAILURES="1000")
    with stopping(edge), httpx.Client(base_url=edge.url, timeout=20.0) as client:
        edge.wait_ready()
        page = operator.opens(edge)
        expect(page.locator("#degrading")).to_be_hidden()

        def degrading() -> bool:
            client.post("/v1/classify", json={"inputs": ODD})
            return bool(client.get("/console/state").json()["degrading"])

        eventually(degrading, "the state", 10.0)
        expect(page.locator("#state-remote")).to_contain_text("nearly all deferrals degrade")
        expect(page.locator("#degrading")).to_contain_text("remote_unavailable")
