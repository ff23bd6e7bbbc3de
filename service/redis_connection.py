"""REDIS_URL as connections, set up once for policies and limits.

What is wrong with it is told at the start, and why a connection failed, in our words.
"""

import inspect
import re
import ssl
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import StartupError

FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

# In our words, the narrowest first: the server's own may repeat what it was sent, the password too.
_REASONS: dict[type[Exception], str] = {
    redis_errors.AuthenticationError: "it refuses our user name or password",
    redis_errors.ReadOnlyError: "it is a read-only replica",
    redis_errors.NoPermissionError: "our user may not use these commands, keys or channels",
    redis_errors.OutOfMemoryError: "it is out of memory",
    redis_errors.BusyLoadingError: "it is still loading its data",
    redis_errors.TimeoutError: "it does not answer in time",
    TimeoutError: "it does not answer in time",
    redis_errors.ConnectionError: "it cannot be reached",
    OSError: "it cannot be reached",
    redis_errors.RedisError: "it refuses the command",
}


def label_of(url: str) -> str:
    """The server without its password."""
    parts = urlsplit(url)
    return f"Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"


def open_pool(url: str, timeout_s: float, **options: Any) -> ConnectionPool:
    """Connects on first use. Raises StartupError for what can never work.

    The service's own timeout wins over what the URL says, and so does whatever changes how replies are read.
    """
    ours = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # who asks decides when to try again
        "protocol": 2,  # replies of one shape, whatever the server
        "decode_responses": False,
    }
    where = f"REDIS_URL ({label_of(url)})"
    _check_options(url, where)
    try:
        pool = ConnectionPool.from_url(url, **options, **ours)
        pool.connection_kwargs |= ours
        # The only check of an option's value, and of the files of TLS.
        connection = pool.connection_class(**pool.connection_kwargs)
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()
    except (ValueError, TypeError, OSError, redis_errors.RedisError) as error:
        if isinstance(error, ssl.SSLError):
            raise StartupError(f"{where}: its certificate files hold no PEM certificate, or not this key's") from None
        raise StartupError(f"{where} has an option whose value the client does not take: {_option_in(error)}") from None
    return pool


def reason_of(error: BaseException) -> str:
    """Why the server did not do it. Of a failed TLS handshake the client says only that it could not connect."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"no TLS connection: its certificate is not trusted ({cause.verify_message or 'unknown authority'}); "
                "?ssl_ca_certs=FILE in REDIS_URL names a private authority"
            )
        if isinstance(cause, ssl.SSLError):
            return "no TLS connection: it speaks no TLS on that port, or refuses ours"
        cause = cause.__cause__ or cause.__context__
    return next((words for kind, words in _REASONS.items() if isinstance(error, kind)), "it cannot be used")


def _check_options(url: str, where: str) -> None:
    parts = urlsplit(url)
    kinds = (
        (SSLConnection, Connection, AbstractConnection)
        if parts.scheme == "rediss"
        else (Connection, AbstractConnection)
    )
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} | {"max_connections"}
    known -= {"self", "kwargs", "host", "port"}
    given = parse_qs(parts.query, keep_blank_values=True)
    for option in given:
        if option in known:
            continue
        if option.startswith("ssl_") and parts.scheme != "rediss":
            raise StartupError(f"{where}: the option {option[:60]!r} is for TLS, which is rediss://")
        nearest = get_close_matches(option[:60], sorted(known), 1)
        hint = f"; do you mean {nearest[0]}?" if nearest else ""
        raise StartupError(f"{where} has an option that the client does not know: {option[:60]!r}{hint}")
    requirement = given.get("ssl_cert_reqs", ["required"])[0]
    if requirement not in ("none", "optional", "required"):
        raise StartupError(f"{where}: the option ssl_cert_reqs is none, optional or required, not {requirement[:60]!r}")
    for option in FILES:
        for path in given.get(option, ()):
            try:
                with Path(path).open("rb"):
                    pass
            except (OSError, ValueError) as error:
                raise StartupError(
                    f"{where}: {option}: {path[:200]}: {getattr(error, 'strerror', None) or error}"
                ) from None


def _option_in(error: Exception) -> str:
    """Which one, where the client says so; of its other words nothing: they may repeat the URL, and so the password."""
    found = re.match(r"Invalid value for '(\w+)' in connection URL", str(error))
    return found[1] if found else type(error).__name__
