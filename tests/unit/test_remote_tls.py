"""The way to the large model over TLS: with a right certificate it works, with any other it is unavailable."""

import shutil
import ssl
from pathlib import Path

import pytest
from support.certificates import Authority
from support.faulty_server import serving
from support.remotes import Outcomes, answering, ask, dropping, good, labels_of, remote_to

from service.errors import RemoteUnavailable, StartupError
from service.remote.http import trusted_roots

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


async def test_a_server_whose_certificate_our_authority_has_signed_is_asked(authority: Authority) -> None:
    """Also on the connection of its own that a second attempt takes, and on a kept-alive one."""
    tls = trusted_roots(authority.file)
    script = answering(
        200, b'{"data": [{"labels": ["a"]}], "outputs": [{"label": "a", "score": 1, "decision": "accepted"}]}'
    )
    async with serving(script, authority.server("right")) as server, remote_to(server.url, tls=tls, key="k") as remote:
        for _ in range(3):
            assert await ask(remote)
        assert await labels_of(remote) == ["a"]
    assert server.connections == 2
    assert {turn.headers["authorization"] for turn in server.requests} == {"Bearer k"}


async def test_a_connection_lost_over_tls_is_tried_again(authority: Authority) -> None:
    tls = trusted_roots(authority.file)
    async with serving(dropping, authority.server("dropping")) as server, remote_to(server.url, tls=tls) as remote:
        with pytest.raises(RemoteUnavailable):
            await ask(remote)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("host", "days"),
    [("IP:127.0.0.1", -1), ("DNS:large.example", 2), ("IP:127.0.0.2", 2)],
    ids=["expired", "name", "ip"],
)
async def test_a_certificate_that_is_not_valid_is_refused(authority: Authority, host: str, days: int) -> None:
    """And nothing is said to such a server, the key least of all."""
    outcomes = Outcomes()
    certified = authority.server("wrong", host=host, days=days)
    options = {"tls": trusted_roots(authority.file), "failures": 1, "key": "k"}
    async with serving(good, certified) as server, remote_to(server.url, outcomes, **options) as remote:
        with pytest.raises(RemoteUnavailable, match="TLS"):
            await ask(remote)
        assert remote.breaker_open
    assert server.requests == []
    assert outcomes == ["remote_unavailable"]


@pytest.mark.parametrize("other", [True, False], ids=["another authority", "the system's roots"])
async def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(
    authority: Authority, tmp_path: Path, other: bool
) -> None:
    tls = trusted_roots(Authority(tmp_path, "theirs").file if other else None)
    async with serving(good, authority.server("untrusted")) as server, remote_to(server.url, tls=tls) as remote:
        with pytest.raises(RemoteUnavailable, match="TLS"):
            await ask(remote)
    assert server.requests == []


async def test_without_a_file_https_is_verified_too(authority: Authority) -> None:
    async with serving(good, authority.server("default")) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteUnavailable, match="TLS"):
            await ask(remote)
    assert server.requests == []


async def test_a_handshake_that_never_ends_is_given_up() -> None:
    """A server without TLS waits for the rest of what it takes for a request."""
    async with serving(good) as server:
        over_tls = server.url.replace("http", "https")
        async with remote_to(over_tls, connect_timeout_s=0.2) as remote:
            with pytest.raises(RemoteUnavailable):
                await ask(remote)


def test_the_trusted_file_must_hold_a_certificate(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for file in (garbage, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(StartupError, match=r"GATEKEEPER_REMOTE_CA_FILE: .*" + file.name):
            trusted_roots(file)


def test_certificates_and_host_names_are_checked() -> None:
    context = trusted_roots(None)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
