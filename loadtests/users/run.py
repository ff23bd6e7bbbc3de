"""A short headless Locust run against a running edge: `make loadtest`, or

    python -m loadtests.users.run --users 32 --duration 60
    python -m loadtests.users.run --shape threshold-sweep --thresholds 0.5,0.7,0.9 --sentences clinc150

Exit code 0: every request was answered as promised; 1: one was not, or something could not be put back; 2: there was no
run, because nothing answers at the URL or the options do not fit.
"""

import argparse
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from loadtests.users import choice, stages
from loadtests.users.choice import KEY_VARIABLE

HERE = Path(__file__).resolve().parent.parent
SPAWN_S = 1.0  # all users are there after about this long
STOP_S = 10  # at the end each user waits for its last answer, so that the edge and Locust count the same items
GRACE_S = 30.0  # for Locust itself to start and to stop
SHAPE_S = 300.0  # for what lies between the phases of a shape: users who come, the operator's commands
# Options of ours that are Locust's as well, and those that only one shape has.
OF_A_SHAPE = {
    "thresholds": "threshold-sweep",
    "admin_url": "threshold-sweep",
    "large_port": "large-model-outage",
    "outage_command": "large-model-outage",
    "recovery_command": "large-model-outage",
}
PASSED_ON = (
    "data",
    "text_column",
    "label_column",
    "mix",
    "sentences",
    "images",
    "request_timeout_ms",
    "shape",
    *OF_A_SHAPE,
)


def main(argv: list[str] | None = None) -> int:
    """Run, print Locust's summary and the deferral ratio."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name, shape in OF_A_SHAPE.items():
        if getattr(arguments, name) and arguments.shape != shape:
            parser.error(f"--{name.replace('_', '-')} is for --shape {shape}")
    reason = _why_not(arguments.url)
    if reason is not None:
        print(f"loadtest: {reason}", file=sys.stderr)
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{arguments.users} users against {arguments.url} for {arguments.duration} s", flush=True)
    code = _run_locust(arguments)
    if code == choice.WRONG_USE:  # Locust has said why
        return 2
    if arguments.shape == "threshold-sweep":
        _draw_curve(arguments.output)
    if code != 0:
        print("loadtest: failed, see above", file=sys.stderr)
    return min(abs(code), 1)


def _draw_curve(output: Path) -> None:
    try:
        from loadtests.users import curve  # noqa: PLC0415  matplotlib may not be installed
    except ModuleNotFoundError as error:
        print(f"loadtest: no picture of the curve without {error.name}", file=sys.stderr)
        return
    print(curve.draw(output / "loadtest_phases.csv", output / "deferral-curve.png"), flush=True)


def _why_not(url: str) -> str | None:
    """Why there cannot be a run, and what to do about it."""
    if importlib.util.find_spec("locust") is None:
        return "Locust is not installed: pip install -e '.[loadtest]'"
    try:
        status = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code
    except httpx.TransportError:
        return f"nothing answers at {url}: start it in another terminal with `make serve`"
    if status != 200:
        return f"{url}/readyz answers {status}: not an edge, or one that is stopping"
    return None


def _run_locust(arguments: argparse.Namespace) -> int:
    """Locust's exit code."""
    files = [HERE / "locustfile.py", *([HERE / "shapes.py"] if arguments.shape else [])]
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", ",".join(map(str, files)), "--headless"),
        *("--host", arguments.url),
        *("--users", str(arguments.users)),
        *("--spawn-rate", str(math.ceil(arguments.users / SPAWN_S))),
        *("--run-time", f"{arguments.duration}s"),
        *("--stop-timeout", str(STOP_S)),
        *("--csv", str(arguments.output.resolve() / "loadtest")),
        *("--only-summary", "--loglevel", "WARNING"),
        *_passed_on(arguments),
    ]
    limit_s = arguments.duration + SPAWN_S + STOP_S + GRACE_S + (SHAPE_S if arguments.shape else 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that Locust never outlives us
    environment = os.environ | ({KEY_VARIABLE: arguments.key} if arguments.key else {})  # never among the arguments
    with subprocess.Popen(command, cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL) as locust:  # noqa: S603  our interpreter
        try:
            return locust.wait(limit_s)
        except KeyboardInterrupt:  # Locust has had it as well, and ends with its summary
            return locust.wait(STOP_S + GRACE_S)
        except subprocess.TimeoutExpired:
            print(f"loadtest: Locust did not end within {limit_s:g} s and is stopped", file=sys.stderr)
            return 1
        finally:
            _end(locust)


def _end(locust: "subprocess.Popen[bytes]") -> None:
    """Gently first: a shape puts back what it has changed."""
    if locust.poll() is None:
        locust.terminate()
        try:
            locust.wait(STOP_S + GRACE_S)
        except subprocess.TimeoutExpired:
            locust.kill()


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    """What Locust is told as we were told it."""
    options = [
        f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in PASSED_ON if getattr(arguments, name)
    ]
    if arguments.processes > 1:
        port = str(_free_port())
        options += ["--processes", str(arguments.processes), "--master-bind-host", "127.0.0.1"]
        options += ["--master-bind-port", port, "--master-port", port]
    return options


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "loadtests.users.run",
        usage="python -m loadtests.users.run [options]",
        description="A short headless Locust run against a running edge.",
    )
    parser.add_argument("--url", type=_url, default="http://127.0.0.1:8000", help="the edge; default %(default)s")
    parser.add_argument("--users", type=_at_least_one, default=8, help="requests in flight; default %(default)s")
    parser.add_argument("--duration", type=_at_least_one, default=15, help="whole seconds; default %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="for the CSV files; default %(default)s")
    parser.add_argument("--processes", type=_at_least_one, default=1, help="of Locust's, beside a master, if several")
    parser.add_argument("--key", help=f"the API key to send, where the edge asks for one; better in {KEY_VARIABLE}")
    choice.add_arguments(parser)
    parser.add_argument("--shape", choices=tuple(stages.SHAPES), help="how users come and go: see loadtests/shapes.py")
    stages.add_arguments(parser)
    return parser


def _url(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not a URL ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{value!r} is not an http:// or https:// URL")
    return value.rstrip("/")


def _at_least_one(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError("must be between 1 and 100,000")
    return number


if __name__ == "__main__":
    sys.exit(main())
