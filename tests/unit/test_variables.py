"""Variables as people and Kubernetes write them: unset, quoted, misspelt, or somebody else's."""

import pytest

from service.cli import main
from service.settings import EdgeSettings, LargeSettings, setting_names
from service.variables import remarks, without_remarks

LINKS = {
    "GATEKEEPER_PORT": "tcp://10.96.0.12:8000",
    "GATEKEEPER_PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "GATEKEEPER_PORT_8000_TCP_ADDR": "10.96.0.12",
    "GATEKEEPER_PORT_8000_TCP_PORT": "8000",
    "GATEKEEPER_PORT_8000_TCP_PROTO": "tcp",
    "GATEKEEPER_SERVICE_HOST": "10.96.0.12",
    "GATEKEEPER_SERVICE_PORT": "8000",
    "GATEKEEPER_SERVICE_PORT_HTTP": "8000",
    "GATEKEEPER_LARGE_PORT": "tcp://10.96.0.13:8001",
    "GATEKEEPER_ADMIN_PORT": "tcp://[fd00::7]:9000",
    "GATEKEEPER_METRICS_PORT_53_UDP_ADDR": "10.96.0.9",
}


def test_service_links_of_kubernetes_are_no_settings_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert (EdgeSettings().port, EdgeSettings().admin_port, LargeSettings().port) == (8000, None, 8001)
    (line,) = remarks(LINKS, setting_names())
    assert line.startswith("GATEKEEPER_ADMIN_PORT and 10 more like it: service links, which Kubernetes sets")
    assert "enableServiceLinks: false" in line
    assert without_remarks(LINKS | {"PATH": "/bin"}, setting_names()) == {"PATH": "/bin"}


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in setting_names():
        monkeypatch.setenv(name, "")
    for settings in (EdgeSettings(), LargeSettings()):
        assert settings.model_fields_set == set()
    assert remarks({"GATEKEEPER_NOTHING": ""}, setting_names()) == []


@pytest.mark.parametrize("form", ["{}", " {} ", '"{}"', "'{}'", "{}\n", "{}\r\n", ' "{}"\n'])
def test_white_space_and_quotes_around_a_value_are_no_part_of_it(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"GATEKEEPER_PORT": "8123", "GATEKEEPER_HOST": "::1", "GATEKEEPER_ACCESS_LOG": "true"}
    values |= {"GATEKEEPER_REMOTE_URL": "http://a:1,http://b:2", "REDIS_URL": "redis://r:1/0", "GATEKEEPER_BUNDLE": "b"}
    for name, value in values.items():
        monkeypatch.setenv(name, form.format(value))
    settings = EdgeSettings()
    assert (settings.port, settings.host, settings.access_log, str(settings.bundle)) == (8123, "::1", True, "b")
    assert [str(url) for url in settings.remote_url] == ["http://a:1/", "http://b:2/"]
    assert str(settings.redis_url) == "redis://r:1/0"


@pytest.mark.parametrize("name", ["GATEKEEPER_ADMIN_TOKEN", "GATEKEEPER_REMOTE_KEY"])
def test_quotes_around_a_secret_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken away, they would surprise who meant them; kept, every call with the secret would be 401."""
    monkeypatch.setenv(name, '"secret-token"')
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"gatekeeper: {name}: stands in quotes, which would be part of it: write it without"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("GATEKEEPER_REMOTE_URLS", "do you mean GATEKEEPER_REMOTE_URL?"),
        ("GATEKEEPER_DATADIR", "do you mean GATEKEEPER_DATA_DIR?"),
        ("GATEKEEPER_REDIS_URL", "do you mean REDIS_URL?"),
        ("GATEKEPER_PORT", "do you mean GATEKEEPER_PORT?"),
        ("GATEKEEPER_LARGE_BUNDEL", "do you mean GATEKEEPER_LARGE_BUNDLE?"),
        ("GATEKEEPER_THRESHHOLD", "it belongs to the policy"),
        ("GATEKEEPER_REMOTE_TIMEOUT_S", "it belongs to the policy"),
        ("GATEKEEPER_XYZZY", "service/settings.py lists them"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_right_one(name: str, advice: str) -> None:
    (line,) = remarks({name: "1", "GATE": "1", "GATEWAY_PORT": "2"}, setting_names())
    assert line.startswith(f"{name} is no setting and is ignored")
    assert advice in line


def test_a_service_is_not_left_open_by_a_missing_s() -> None:
    (line,) = remarks({"GATEKEEPER_API_KEY": "acme:" + 64 * "0"}, setting_names())
    assert line.endswith("a service reads GATEKEEPER_API_KEYS")
    assert remarks({"GATEKEEPER_API_KEY": "gk_acme_secret", "GATEKEEPER_LOAD_KEY": "gk_a_b"}, setting_names()) == []


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("http://a:1/v1", "http://a:1"),
        ("http://a:1/v1/classify/", "http://a:1"),
        ("https://a/large/v1/classify", "https://a/large"),
        ("http://a:1/readyz", "http://a:1"),
        ("http://a:1,http://b:2/v1/models", "http://b:2"),
    ],
)
def test_a_remote_url_that_ends_in_a_route_is_told_with_the_right_one(
    given: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--remote-url", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f", and the edge adds its routes itself: give {right}")


def test_a_remote_url_may_have_a_prefix() -> None:
    settings = EdgeSettings.model_validate({"remote_url": "http://a:1/v1classify,http://a:1/models/v2"})
    assert len(settings.remote_url) == 2
