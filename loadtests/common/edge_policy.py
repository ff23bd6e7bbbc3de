"""An edge's policy through its admin API, as an operator reads and changes it."""

import os
from pathlib import Path
from typing import Any

import httpx

TOKEN_VARIABLE = "GATEKEEPER_ADMIN_TOKEN"  # noqa: S105  its name
POLICY_VARIABLE = "GATEKEEPER_POLICY_PATH"
TOKEN_FILE = "admin-token"  # noqa: S105  its name; `make serve` keeps it beside the policy
TIMEOUT_S = 10.0


class PolicyRefused(Exception):
    """The edge did not do it. The message is one line, for an operator."""


class PolicyChanged(PolicyRefused):
    """Somebody else has changed the policy meanwhile."""


class EdgeUnreachable(PolicyRefused):
    """Nothing answers, or the policy store is down: it may do it later."""


def find_token() -> str | None:
    """The admin token from its variable, or from the file that `make serve` keeps."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        return token
    path = Path(os.environ.get(POLICY_VARIABLE) or ".gatekeeper/policy.db").parent / TOKEN_FILE
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


class EdgePolicy:
    """The policy of the edge at `url`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url.rstrip('/')}/admin/v1/policy"
        self._headers = {"authorization": f"Bearer {token}"}

    def read(self) -> dict[str, Any]:
        """The policy in force. Raises PolicyRefused."""
        return self._call("GET", {})

    def set_threshold(self, threshold: float, note: str, version: int) -> dict[str, Any]:
        """The new policy, unless the one in force is another than `version`. Raises PolicyRefused."""
        return self._call("PATCH", {"if-match": f'"{version}"'}, json={"threshold": threshold, "note": note})

    def check_threshold(self, threshold: float) -> None:
        """Raises PolicyRefused where the edge would not take it; an edge without a preview says so only later."""
        try:
            response = httpx.post(
                f"{self._url}/preview",
                json={"threshold": threshold},
                headers=self._headers,
                timeout=TIMEOUT_S,
                trust_env=False,
            )
        except httpx.TransportError:
            return
        if response.status_code == 422:
            raise PolicyRefused(_detail(response))

    def _call(self, method: str, headers: dict[str, str], **arguments: Any) -> dict[str, Any]:
        try:
            response = httpx.request(
                method, self._url, headers=self._headers | headers, timeout=TIMEOUT_S, trust_env=False, **arguments
            )
        except httpx.TransportError as error:
            raise EdgeUnreachable(f"nothing answers at {self._url} ({error or type(error).__name__})") from None
        if response.status_code == 401:
            raise PolicyRefused(f"{self._url} refuses the admin token: set {TOKEN_VARIABLE} to the edge's")
        if response.status_code == 404:
            raise PolicyRefused(f"{self._url} answers 404: the edge's admin API is off, or on a port of its own")
        if response.status_code == 412:
            raise PolicyChanged("somebody else has changed the policy meanwhile")
        if response.status_code == 503:
            raise EdgeUnreachable(f"{self._url} answers 503: {_detail(response)}")
        if response.status_code != 200:
            raise PolicyRefused(f"{self._url} answers {response.status_code}: {_detail(response)}")
        try:
            policy = response.json()
            return {**policy, "version": int(policy["version"]), "threshold": float(policy["threshold"])}
        except (ValueError, LookupError, TypeError):
            raise PolicyRefused(f"{self._url} answers with something else than a policy") from None


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200]
