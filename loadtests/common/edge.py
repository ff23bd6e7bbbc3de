"""The edge as the benchmarks start it: its defaults, with its own count of what it decided."""

from contextlib import AbstractContextManager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtests.common.servers import BenchFailed, Cores, Server, free_port, running

NOBODY = "http://127.0.0.1:9"
TOKEN = "a-token-for-benchmarks"  # noqa: S105  of a server that lives for the benchmark


def running_edge(
    directory: Path, cores: Cores, remote_url: str = NOBODY, bundle: Path | None = None
) -> AbstractContextManager[Server]:
    """It, ready, on the servers' core; without a bundle the packaged one."""
    environment = {
        "GATEKEEPER_ADMIN_TOKEN": TOKEN,
        "GATEKEEPER_LOG_FORMAT": "json",
        "GATEKEEPER_POLICY_PATH": str(directory / "policy.db"),
        "GATEKEEPER_REMOTE_URL": remote_url,
        "GATEKEEPER_DRAIN_S": "0",
    } | ({} if bundle is None else {"GATEKEEPER_BUNDLE": str(bundle)})
    return running(
        "gatekeeper",
        ["service.cli", "serve"],
        port=free_port(),
        ready="/readyz",
        environment=environment,
        directory=directory,
        core=cores.servers,
    )


def set_threshold(edge: Server, threshold: float) -> None:
    """By the admin API, as an operator does it."""
    response = httpx.patch(
        f"{edge.url}/admin/v1/policy",
        json={"threshold": threshold, "note": "of a benchmark"},
        headers={"authorization": f"Bearer {TOKEN}"},
        trust_env=False,
    )
    if response.status_code != 200:
        raise BenchFailed(f"the edge refused the threshold: {response.status_code} {response.text[:200]}")


def check_decided(edge: Server, wanted: tuple[str, str], requests: int) -> None:
    """Every item was decided as (decision, reason), by the edge's own count, and there were that many at least."""
    items: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{edge.url}/metrics", trust_env=False).text):
        for sample in family.samples:
            if sample.name == "gatekeeper_items_total" and sample.value:
                key = sample.labels["decision"], sample.labels["reason"]
                items[key] = items.get(key, 0.0) + sample.value
    counted = items.pop(wanted, 0.0)
    if items:
        others = ", ".join(f"{count:,.0f} {decision} ({reason})" for (decision, reason), count in items.items())
        raise BenchFailed(f"not only {wanted[0]} items were measured: {others}")
    if counted < requests:
        raise BenchFailed(f"wrk counted {requests:,} answers and the edge only {counted:,.0f} items")
