"""REDIS_URL: what can never work is told at the start, why TLS failed by the store and the limits, and no password."""

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest
from support.certificates import Authority

from service.cli import main
from service.errors import PolicyStoreDown
from service.policy.redis import RedisPolicyStore
from service.redis_connection import reason_of

SECRET = "hush-hush"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://127.0.0.1:1/0?nonsense=1", "an option that the client does not know: 'nonsense'"),
        ("redis://127.0.0.1:1/0?sokcet_timeout=1", "do you mean socket_timeout?"),
        ("redis://127.0.0.1:1/0?ssl_ca_certs=/a", "the option 'ssl_ca_certs' is for TLS, which is rediss://"),
        (
            "rediss://127.0.0.1:1/0?ssl_cert_reqs=CERT_NONE",
            "ssl_cert_reqs is none, optional or required, not 'CERT_NONE'",
        ),
        ("rediss://127.0.0.1:1/0?ssl_ca_certs=/no/such/file", "ssl_ca_certs: /no/such/file: No such file or directory"),
        ("rediss://127.0.0.1:1/0?ssl_ca_certs=README.md", "hold no PEM certificate"),
        ("redis://127.0.0.1:1/0?db=x", "an option whose value the client does not take: db"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "serve-large"])
def test_what_can_never_work_is_told_at_the_start(
    url: str, told: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", url.replace("://", f"://:{SECRET}@"))
    assert main([command, "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gatekeeper: REDIS_URL (Redis at 127.0.0.1:1)")
    assert told in line
    assert SECRET not in line


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    tls = Authority(tmp_path, "theirs").server("redis")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    store = RedisPolicyStore(f"rediss://:{SECRET}@127.0.0.1:{port}/0", 5.0)
    with pytest.raises(PolicyStoreDown, match="no TLS connection: its certificate is not trusted") as refused:
        await store.newest("bundle")
    assert "ssl_ca_certs" in refused.value.detail
    assert SECRET not in refused.value.detail
    await store.close()
    server.close()
    await server.wait_closed()


async def test_a_server_without_tls_is_told() -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    store = RedisPolicyStore(f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 5.0)
    with pytest.raises(PolicyStoreDown, match="no TLS connection: it speaks no TLS on that port"):
        await store.newest("bundle")
    await store.close()
    server.close()
    await server.wait_closed()


def test_an_error_without_words_has_a_reason() -> None:
    assert reason_of(ValueError()) == "it cannot be used"
    assert reason_of(ssl.SSLError(1, "x")).startswith("no TLS connection")
