"""A short headless Locust run against a running edge: `make loadtest`, or

    python -m loadtests.run --users 32 --duration 60

Exit code 0: every request was answered as promised; 1: one was not; 2: nothing answers at the URL.
"""

import argparse
import importlib.util
import math
import signal
import subprocess
import sys
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
SPAWN_S = 1.0  # all users are there after about this long
STOP_S = 10  # at the end each user waits for its last answer, so that the edge and Locust count the same items
GRACE_S = 30.0  # for Locust itself to start and to stop


def main(argv: list[str] | None = None) -> int:
    """Run, print Locust's summary and the deferral ratio."""
    arguments = _parser().parse_args(argv)
    reason = _why_not(arguments.url)
    if reason is not None:
        print(f"loadtest: {reason}", file=sys.stderr)
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{arguments.users} users against {arguments.url} for {arguments.duration} s", flush=True)
    code = _run_locust(arguments)
    if code != 0:
        print("loadtest: failed, see above", file=sys.stderr)
    return min(abs(code), 1)


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
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py"), "--headless"),
        *("--host", arguments.url),
        *("--users", str(arguments.users)),
        *("--spawn-rate", str(math.ceil(arguments.users / SPAWN_S))),
        *("--run-time", f"{arguments.duration}s"),
        *("--stop-timeout", str(STOP_S)),
        *("--csv", str(arguments.output.resolve() / "loadtest")),
        *("--only-summary", "--loglevel", "WARNING"),
    ]
    limit_s = arguments.duration + SPAWN_S + STOP_S + GRACE_S
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that Locust never outlives us
    with subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.DEVNULL) as locust:  # noqa: S603  our interpreter
        try:
            return locust.wait(limit_s)
        except KeyboardInterrupt:  # Locust has had it as well, and ends with its summary
            return locust.wait(STOP_S + GRACE_S)
        except subprocess.TimeoutExpired:
            print(f"loadtest: Locust did not end within {limit_s:g} s and is stopped", file=sys.stderr)
            return 1
        finally:
            if locust.poll() is None:
                locust.kill()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loadtests.run", description="A short headless Locust run against a running edge.")
    parser.add_argument("--url", type=_url, default="http://127.0.0.1:8000", help="the edge; default %(default)s")
    parser.add_argument("--users", type=_at_least_one, default=8, help="requests in flight; default %(default)s")
    parser.add_argument("--duration", type=_at_least_one, default=15, help="whole seconds; default %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="for the CSV files; default %(default)s")
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
