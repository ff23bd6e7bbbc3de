"""docker-compose.yml without Docker: its services as processes of this machine, then as an operator would try them.

    make compose-check        or: python -m deploy.check [--keep-running]

Each process gets the command, the environment and the health check of its service; only addresses and paths become
this machine's (`large:8001` a port of 127.0.0.1, a volume a folder). Exit code 0: everything is as it should be; 1:
something is not; 2: a program is missing. What only an engine can show (that the images build, users, read-only file
systems, networks, limits) is not checked; Grafana is not started: what it mounts is read.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from deploy.compose import ROOT, ComposeService, read_compose
from deploy.programs import find_redis_server

HEALTHY_WITHIN_S = 90.0
SETTLED_WITHIN_S = 30.0
ODD = "asdf qwer zxcv"
# The port that each listens on in its container, and how it is told to take another one.
PORTS = {"edge-1": 8000, "edge-2": 8000, "large": 8001, "redis": 6379, "prometheus": 9090, "grafana": 3000}
EVERYWHERE = "0.0.0.0"  # noqa: S104  in a container; here it becomes 127.0.0.1
PORT_VARIABLES = {"edge": "GATEKEEPER_PORT", "large": "GATEKEEPER_LARGE_PORT"}


class CheckFailed(Exception):
    """Something is not as it should be; the message says what."""


class Missing(Exception):
    """A program that is needed is not installed."""


class Stack:
    """The services as processes, on free ports, in a folder of their own."""

    def __init__(self, services: dict[str, ComposeService], directory: Path, *, scrape_interval: str | None) -> None:
        self.services = services
        self.directory = directory
        self.ports = {name: _free_port() for name in services}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._scrape_interval = scrape_interval

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def command(self, name: str) -> list[str]:
        """The command of a service, here. Raises Missing."""
        service = self.services[name]
        program, *arguments = (self.here(word, name) for word in service.command)
        port = self.ports[name]
        if program == "gatekeeper":
            return [sys.executable, "-m", "service.cli", *arguments]
        if name == "redis":
            return [_redis_server(program), *arguments, "--port", str(port), "--bind", "127.0.0.1"]
        if name == "prometheus":  # the image's entry point is the program; compose gives its flags
            listen = f"--web.listen-address=127.0.0.1:{port}"
            return [_program("prometheus"), program, *arguments, listen, "--log.level=warn"]
        raise Missing(f"{name}: do not know how to run {program} here")

    def programs(self) -> Iterator[str]:
        """What the health checks run, which the images bring along."""
        for service in self.services.values():
            for word in service.health or ():
                yield from (program for program in ("redis-cli", "wget") if program in word.split())

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service, here."""
        service = self.services[name]
        variables = {key: self.here(value, name) for key, value in service.environment.items()}
        if service.target is not None:
            variables[PORT_VARIABLES[service.target]] = str(self.ports[name])
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("GATEKEEPER_", "REDIS_URL"))}
        return clean | variables | {"PATH": f"{Path(sys.executable).parent}:{clean['PATH']}"}

    def here(self, text: str, name: str) -> str:
        """Addresses and paths of a container as this machine's."""
        for other, port in PORTS.items():
            if other in self.ports:
                text = text.replace(f"{other}:{port}", f"127.0.0.1:{self.ports[other]}")
        own = {f"127.0.0.1:{PORTS[name]}": f"127.0.0.1:{self.ports[name]}", EVERYWHERE: "127.0.0.1"}
        for theirs, ours in own.items():
            text = text.replace(theirs, ours)
        mounts = self.services[name].mounts
        if not mounts:
            return text
        paths = "|".join(re.escape(inside) for inside in sorted(mounts, key=len, reverse=True))

        def place(found: re.Match[str]) -> str:
            return str(self._mounted(name, found[1], mounts[found[1]]))

        return re.sub(rf"(?<![\w/.-])({paths})(?![\w.-])", place, text)

    def _mounted(self, name: str, inside: str, source: str) -> Path:
        """Where a mount lies here: a volume is a folder; files of the repository are copied, with addresses as here."""
        place = self.directory / name / inside.lstrip("/")
        if place.exists():
            return place
        if not source.startswith("./"):
            place.mkdir(parents=True)
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        origin = ROOT / source
        (shutil.copytree if origin.is_dir() else shutil.copyfile)(origin, place)
        for file in [place] if place.is_file() else place.rglob("*.yml"):
            text = self.here(file.read_text(encoding="utf-8"), name)
            if self._scrape_interval is not None:
                text = text.replace("_interval: 5s", f"_interval: {self._scrape_interval}")
            file.write_text(text, encoding="utf-8")
        return place

    def start(self, name: str) -> None:
        """Start one service; its output goes to its log."""
        command, environment = self.command(name), self.environment(name)
        with self.log(name).open("ab") as stream, _interrupts_held_back():
            self.processes[name] = subprocess.Popen(  # noqa: S603  our own compose file's
                command, env=environment, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
            )

    def health(self, name: str) -> list[str]:
        """The health check of a service, here. Raises CheckFailed where it has none."""
        health = self.services[name].health
        if health is None:
            raise CheckFailed(f"{name} has no health check")
        return [self.here(word, name) for word in health]

    def wait_healthy(self, name: str) -> float:
        """Seconds until the service's own health check passes. Raises CheckFailed."""
        words = [word.replace("redis-cli", f"redis-cli -p {self.ports[name]}") for word in self.health(name)]
        began = time.monotonic()
        while True:
            if self.processes[name].poll() is not None:
                raise CheckFailed(f"{name} has ended: {_tail(self.log(name))}")
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run(  # noqa: S603  our own compose file's
                    words, env=self.environment(name), capture_output=True, timeout=5, check=False, cwd=self.directory
                )
                if done.returncode == 0:
                    return time.monotonic() - began
            if time.monotonic() - began > HEALTHY_WITHIN_S:
                raise CheckFailed(f"{name} is not healthy after {HEALTHY_WITHIN_S:g} s: {_tail(self.log(name))}")
            time.sleep(0.1)

    def stop(self, name: str) -> int:
        """SIGTERM; the exit code. Raises CheckFailed when the service's grace period is not enough."""
        process = self.processes[name]
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(self.services[name].grace_s)
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"{name} did not stop within {self.services[name].grace_s:g} s") from None

    def kill(self) -> None:
        """Leave nothing running."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A signal that comes between a process's start and its entry in the list would leave it running.

    Raises KeyboardInterrupt afterwards, if one came. Handlers, unlike a mask, are not inherited by what is started.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def running(
    token: str, directory: Path, tell: Callable[[str], None], *, scrape_interval: str | None = None
) -> Iterator[Stack]:
    """Everything but Grafana, started in compose's order, each when what it depends on is healthy."""
    services = read_compose({"GATEKEEPER_ADMIN_TOKEN": token})
    stack = Stack(services, directory, scrape_interval=scrape_interval)
    waiting = [name for name in services if name != "grafana"]
    for name in waiting:
        stack.command(name)  # a program that is missing is told before anything runs
    for program in stack.programs():
        _program(program)
    healthy: set[str] = set()
    with ExitStack() as cleanup:
        cleanup.callback(stack.kill)
        while waiting:
            name = next(name for name in waiting if set(services[name].waits_for) <= healthy)
            waiting.remove(name)
            stack.start(name)
            seconds = stack.wait_healthy(name)
            healthy.add(name)
            tell(f"{name:<11} healthy after {seconds:4.1f} s at {stack.url(name)}: {' '.join(services[name].command)}")
        yield stack


def main(argv: list[str] | None = None) -> int:
    """Start, try, stop."""
    parser = argparse.ArgumentParser("deploy.check", description="docker-compose.yml as processes, without Docker.")
    parser.add_argument("--keep-running", action="store_true", help="until Ctrl-C, with its addresses printed")
    arguments = parser.parse_args(argv)
    stop_cleanly()
    token = os.environ.get("GATEKEEPER_ADMIN_TOKEN") or secrets.token_urlsafe(16)
    try:
        _check_schema()
        with (
            tempfile.TemporaryDirectory(prefix="compose-check-") as folder,
            running(token, Path(folder), _say) as stack,
        ):
            _try(stack, token)
            _say(f"grafana     not started here; it would find {_grafana_files(stack.services['grafana'])}")
            if arguments.keep_running:
                _say(f"running until Ctrl-C; the admin token is {token}")
                signal.pause()
            _stop(stack)
    except Missing as error:
        print(f"compose-check: {error}", file=sys.stderr)
        return 2
    except (CheckFailed, ValueError, httpx.HTTPError) as error:
        print(f"compose-check: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    _say("all as it should be")
    return 0


def _try(stack: Stack, token: str) -> None:
    with httpx.Client(timeout=20.0, trust_env=False) as client:
        for name in ("edge-1", "edge-2"):
            answer = client.post(f"{stack.url(name)}/v1/classify", json={"inputs": ODD}).json()["outputs"][0]
            _require(answer["answered_by"] == "large", f"{name} did not defer to the large model: {answer}")
        _say("edges       both defer an odd sentence, and the large model answers")
        policy_shared(stack, token, client)
        _say("policy      changed through edge-1, in force on edge-2 (over Redis), and back")
        targets = _eventually(lambda: _targets_up(stack, client), "Prometheus does not see every target up")
        rules = _rules(stack, client)
        _say(f"prometheus  {targets} targets up, {rules} rules loaded, none with an error")
        for name in ("edge-1", "edge-2"):
            page = client.get(f"{stack.url(name)}/console")
            _require(page.status_code == 200, f"{name} has no console: {page.status_code}")


def policy_shared(stack: Stack, token: str, client: httpx.Client) -> None:
    """A policy set through one edge is in force on the other. Raises CheckFailed."""
    headers = {"authorization": f"Bearer {token}"}

    def ask(edge: str, method: str, path: str, **content: Any) -> Any:
        answer = client.request(method, f"{stack.url(edge)}/admin/v1/{path}", headers=headers, **content)
        _require(answer.status_code == 200, f"{edge} answers {answer.status_code} to {method} {path}: {answer.text}")
        return answer.json()

    before = ask("edge-1", "GET", "policy")
    ask("edge-1", "PATCH", "policy", json={"threshold": 0.4321, "note": "compose-check"})
    _eventually(lambda: ask("edge-2", "GET", "policy")["threshold"] == 0.4321, "edge-2 does not follow edge-1's policy")
    ask("edge-2", "POST", "policy/rollback", json={"version": before["version"]})
    _eventually(
        lambda: ask("edge-1", "GET", "policy")["threshold"] == before["threshold"], "edge-1 does not follow edge-2"
    )


def _targets_up(stack: Stack, client: httpx.Client) -> int:
    found = client.get(f"{stack.url('prometheus')}/api/v1/targets").json()["data"]["activeTargets"]
    return len(found) if found and all(target["health"] == "up" for target in found) else 0


def _rules(stack: Stack, client: httpx.Client) -> int:
    groups = client.get(f"{stack.url('prometheus')}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    broken = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]
    _require(not broken and bool(rules), f"rules: {broken or 'none loaded'}")
    return len(rules)


def _grafana_files(service: ComposeService) -> str:
    """What Grafana's mounts hold. Raises CheckFailed where they lead nowhere."""
    found = []
    for source in (source for source in service.mounts.values() if source.startswith("./")):
        path = ROOT / source
        files = [path] if path.is_file() else sorted(path.glob("*.*")) if path.is_dir() else []
        _require(bool(files), f"grafana mounts {source}, which holds nothing")
        found += [json.loads(path.read_text(encoding="utf-8"))["title"] for path in files if path.suffix == ".json"]
    return f"{len(found)} dashboards: {', '.join(found)}"


def _stop(stack: Stack) -> None:
    for name in ("prometheus", "edge-1", "edge-2", "large", "redis"):
        code = stack.stop(name)
        _require(code == 0, f"{name} ended with {code}: {_tail(stack.log(name))}")
    _say("stopped     each at SIGTERM within its grace period, with exit code 0")


def _check_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)  # noqa: S603  our interpreter
    if "No module named" in done.stderr:
        raise Missing("check-jsonschema is not installed: make setup")
    _require(done.returncode == 0, f"docker-compose.yml: {done.stdout}{done.stderr}")
    _say("compose     docker-compose.yml is valid against the published schema")


def _eventually(condition: Callable[[], Any], otherwise: str) -> Any:
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise CheckFailed(f"{otherwise} within {SETTLED_WITHIN_S:g} s")
        time.sleep(0.05)
    return found


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckFailed(otherwise)


def _redis_server(program: str) -> str:
    try:
        return shutil.which(program) or str(find_redis_server())
    except FileNotFoundError as error:
        raise Missing(str(error)) from error


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1000:].strip()


def _say(text: str) -> None:
    print(text, flush=True)


def stop_cleanly() -> None:
    """SIGTERM as Ctrl-C: what was started is stopped. Also Ctrl-C in a shell's background, which ignores it."""

    def interrupted(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)


if __name__ == "__main__":
    sys.exit(main())
