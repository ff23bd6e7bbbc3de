"""The port of a service: held before seconds go into loading a model, and told in a line where it cannot be had."""

import re
import socket
import subprocess
import sys

import pytest
from support.processes import ROOT

from service.errors import StartupError
from service.server.run import bind, listening


def test_a_port_is_held_from_the_start_on_though_nothing_listens_yet() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(StartupError, match=f"port {port} on {host} is taken: stop what listens there"):
                bind(host, port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5.0)


def test_a_port_is_free_again_while_the_last_run_s_connections_are_in_time_wait() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        listening(listener)
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    bind("127.0.0.1", port).close()


def test_a_port_that_was_lost_while_the_model_was_loaded_is_told() -> None:
    """Where the system lets two bind one port, the one that listens first has it."""
    script = """
import socket
from fastapi import FastAPI
from service.errors import StartupError
from service.server.run import run
from service.settings import LargeSettings
one, other = socket.socket(), socket.socket()
for listener in (one, other):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(("127.0.0.1", 0))
other.bind(one.getsockname())
other.listen()
try:
    run(FastAPI(), LargeSettings(), [one])
except StartupError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"port \d+ on 127\.0\.0\.1 is taken: stop what listens there or choose another\n", done.stdout)


@pytest.mark.parametrize(("host", "told"), [("a..b", "a..b:80"), ("2001:db8::1", "[2001:db8::1]:80")])
def test_an_address_that_is_not_ours_is_told(host: str, told: str) -> None:
    with pytest.raises(StartupError, match=re.escape(f"cannot listen on {told}: ")):
        bind(host, 80)
