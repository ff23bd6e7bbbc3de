"""`gatekeeper up`: the edge and the large-model service as two processes on this machine, stopped together.

The first signal stops them, the edge first. Further ones go on to the child that is being stopped, which takes them as
service/server/run.py says: what it has accepted is answered, unless somebody insists.
"""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
from pydantic_core import PydanticCustomError

from models.files import read_bounded
from service.errors import StartupError
from service.server.run import address, bind
from service.settings import EdgeSettings, LargeSettings, check_admin_token, setting_names
from service.variables import without_remarks

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0  # beyond the time that a child itself gives to what it has accepted
MAX_TOKEN_BYTES = 1024
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class _Stopped(Exception):
    """A signal asked us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_pair(edge: EdgeSettings, large: LargeSettings) -> int:
    """Start both, wait until both are ready, say how to use them, stay until told to stop. 0: stopped on request."""
    for host, port in ((large.host, large.port), (edge.host, edge.port)):
        if port == 0:
            raise StartupError("the pair needs ports that it can tell: give a number above 0")
        bind(host, port).close()
    if edge.admin_port:
        bind(edge.host, edge.admin_port).close()
    token, token_path = admin_token(edge)
    edge_url = f"http://{address(edge.host, edge.port)}"
    large_url = f"http://{address(large.host, large.port)}"
    environment = {
        **without_remarks(os.environ, setting_names()),
        "GATEKEEPER_ADMIN_TOKEN": token,
        "GATEKEEPER_REMOTE_URL": large_url,
        "GATEKEEPER_PORT": str(edge.port),
        "GATEKEEPER_LARGE_PORT": str(large.port),
    }
    environment.setdefault("GATEKEEPER_DRAIN_S", "0")  # nobody routes traffic here: stop at once
    environment.setdefault("GATEKEEPER_LOG_FORMAT", "text")
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _on_signal)
    stop_number = signal.SIGTERM
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        print("starting the small and the large model ...", flush=True)
        for name, command in (("large model", "serve-large"), ("edge", "serve")):
            children[name] = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-m", "service.cli", command],
                env=environment,
                start_new_session=True,  # Ctrl-C comes to us alone, and we stop them in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509  one thread here, and no orphan keeps a port
            )
        _wait_until_ready(children, (f"{large_url}/readyz", f"{edge_url}/readyz"))
        example = _example(edge.bundle, guarded=bool(edge.api_keys or edge.api_keys_file))
        _print_guide(edge_url, large_url, token_path, example)
        while True:
            _check_alive(children)
            time.sleep(0.2)
    except _Stopped as stopped:
        if stopped.number == signal.SIGQUIT:
            stop_number = signal.SIGQUIT
        with suppress(OSError):  # a terminal that has been closed
            print("\nstopping ...", flush=True)
        return 0
    finally:
        _stop(children, stop_number, max(child.drain_s + child.shutdown_timeout_s for child in (edge, large)))


def admin_token(settings: EdgeSettings) -> tuple[str, Path | None]:
    """(token, its file): the configured one, else the generated one beside the policy, mode 0600."""
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value(), None
    path = settings.policy_path.parent / "admin-token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(secrets.token_urlsafe(24) + "\n")
        token = read_bounded(path, MAX_TOKEN_BYTES).decode("ascii").strip()
        check_admin_token(token)
    except OSError as error:
        raise StartupError(f"{path}: the admin token cannot be kept there ({error.strerror})") from error
    except (UnicodeDecodeError, PydanticCustomError):
        raise StartupError(f"{path} holds no token: delete the file, the next start makes a new one") from None
    return token, path


def _on_signal(number: int, _: object) -> None:
    for other in STOP_SIGNALS:  # another one must not interrupt the stopping
        signal.signal(other, lambda *_: None)
    raise _Stopped(number)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(children: dict[str, subprocess.Popen[bytes]], urls: tuple[str, ...]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    waiting = list(urls)
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while waiting:
            _check_alive(children)
            with suppress(httpx.TransportError):
                if client.get(waiting[0]).status_code == 200:
                    waiting.pop(0)
                    continue
            if time.monotonic() > deadline:
                raise StartupError(f"{waiting[0]} did not become ready in {READY_TIMEOUT_S:g} s")
            time.sleep(0.1)


def _check_alive(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, child in children.items():
        code = child.poll()
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise StartupError(f"the {name} {how}; its own words are above. The other one is stopped too")


def _stop(children: dict[str, subprocess.Popen[bytes]], stop_number: int, child_timeout_s: float) -> None:
    # The edge first: its last requests may still need the large model.
    for child in reversed(children.values()):
        if child.poll() is None:
            for number in STOP_SIGNALS:
                signal.signal(number, partial(_pass_on, child))
            child.send_signal(stop_number)
            try:
                child.wait(child_timeout_s + STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _pass_on(child: subprocess.Popen[bytes], number: int, _: object) -> None:
    child.send_signal(number)


def _example(bundle: Path, *, guarded: bool) -> str:
    """What the first request to this edge may look like, as curl's options."""
    key = '-H "authorization: Bearer $KEY" ' if guarded else ""  # one of theirs: we know its hash alone
    manifest = json.loads((bundle / "gatekeeper.json").read_bytes())
    if manifest["task"] == "image-classification":
        return f"{key}-F images=@shirt.png     # your own: PNG, JPEG, WebP, GIF or BMP; more of them with more -F"
    if not {"restaurant_reservation", "weather", "balance"} <= set(manifest["labels"]):  # not CLINC150's
        return f"""{key}-H 'content-type: application/json' \\
               -d '{{"inputs": ["a text of yours", "and another one"]}}'"""
    return f"""{key}-H 'content-type: application/json' \\
               -d '{{"inputs": ["book me a table for two tonight", "is it ok to feel blue on a monday"]}}'"""


def _print_guide(edge_url: str, large_url: str, token_path: Path | None, example: str) -> None:
    token = f"$(cat {token_path})" if token_path is not None else "$GATEKEEPER_ADMIN_TOKEN"
    where = f"in {token_path}" if token_path is not None else "in GATEKEEPER_ADMIN_TOKEN"
    print(
        f"""
ready: edge {edge_url} (console: {edge_url}/console, API: {edge_url}/docs), large model {large_url}
the admin token lies {where}

classify     curl -s {edge_url}/v1/classify {example}
policy       curl -s {edge_url}/admin/v1/policy -H "authorization: Bearer {token}"
threshold    curl -s -X PATCH {edge_url}/admin/v1/policy -H "authorization: Bearer {token}" \\
               -H 'content-type: application/json' -d '{{"threshold": 0.99, "note": "careful today"}}'
metrics      curl -s {edge_url}/metrics | grep -E '^gatekeeper_(items_total|deferral_ratio|threshold)'

Ctrl-C stops both.
""",
        flush=True,
    )
