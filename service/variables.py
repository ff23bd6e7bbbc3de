"""The variables of the environment, as people and Kubernetes write them: what counts as unset, and what is misspelt.

An empty variable is unset. White space and quotes around a value are no part of it. From a secret nothing is taken:
what cannot be meant is refused (settings.py). What Kubernetes sets for a Service named `gatekeeper` is no setting.
"""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource

PREFIX = "GATEKEEPER_"
KEY = f"{PREFIX}API_KEY"
# Read by the commands that ask a running service, by the load tests and by the offline job.
OF_COMMANDS = ("DATA_DIR", "CACHE_DIR", "API_KEY", "LOAD_KEY", "LOAD_DATA")
GUARDS = tuple(f"{PREFIX}{name}" for name in ("API_KEYS", "API_KEYS_FILE", "LARGE_API_KEYS", "LARGE_API_KEYS_FILE"))
SECRETS = frozenset({"admin_token", "remote_key"})
OF_THE_POLICY = ("THRESHOLD", "DEFERRAL", "ON_REMOTE_FAILURE", "REMOTE_TIMEOUT_S")
_LINK = re.compile(r"(?:tcp|udp|sctp)://\S+:[0-9]+")
_LINK_NAME = re.compile(
    r"_SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)$|_PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?$"
)


class Variables(EnvSettingsSource):
    """Where settings come from."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        secret = {f"{PREFIX}{field}".lower() for field in SECRETS}
        self.env_vars = {
            name: value if name in secret else plain(value)
            for name, value in self.env_vars.items()
            if value and not _LINK.fullmatch(value) and (plain(value) or name in secret)
        }


def value_of(name: str) -> str | None:
    """One that is no setting; None where it is unset or empty."""
    return plain(os.environ.get(name, "")) or None


def plain(value: Any) -> str:
    """Without the white space and the quotes around it: an --env-file and a ConfigMap hand those on."""
    text = str(value or "").strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def remarks(environment: Mapping[str, str], settings: Iterable[str]) -> list[str]:
    """A line for each variable that looks like a setting and is none; one line for all service links."""
    known = _known(settings)
    links = _links(environment)
    lines = []
    if links:
        several = f" and {len(links) - 1} more like it" if len(links) > 1 else ""
        lines.append(
            f"{links[0]}{several}: service links, which Kubernetes sets for a Service of that name, and no settings. "
            "They are ignored; `enableServiceLinks: false` in the pod's spec keeps them away"
        )
    lines += [f"{name} is no setting and is ignored{_advice(name, known)}" for name in _unknown(environment, known)]
    if _is_no_key(environment):
        lines.append(f"{KEY} is the key that `gatekeeper demo` and `evaluate` send; a service reads {KEY}S")
    lines += [f"{name} is empty: no API key is asked for" for name in GUARDS if environment.get(name) == ""]
    return lines


def without_remarks(environment: Mapping[str, str], settings: Iterable[str]) -> dict[str, str]:
    """For children, so that each remark is made once."""
    told = {*_links(environment), *_unknown(environment, _known(settings)), *([KEY] if _is_no_key(environment) else [])}
    told |= {name for name in GUARDS if environment.get(name) == ""}
    return {name: value for name, value in environment.items() if name not in told}


def _known(settings: Iterable[str]) -> set[str]:
    return {*settings, *(f"{PREFIX}{name}" for name in OF_COMMANDS)}


def _unknown(environment: Mapping[str, str], known: set[str]) -> list[str]:
    links = _links(environment)
    return [n for n in sorted(environment) if n not in links and n not in known and _means_us(n) and environment[n]]


def _is_no_key(environment: Mapping[str, str]) -> bool:
    key = plain(environment.get(KEY))
    return bool(key) and not key.startswith("gk_")


def _links(environment: Mapping[str, str]) -> list[str]:
    """The service links among our variables, those that hide a setting first."""
    ours = sorted(name for name in environment if name.startswith(PREFIX))
    hiding = [name for name in ours if name.endswith("_PORT") and _LINK.fullmatch(environment[name])]
    return hiding + [name for name in ours if _LINK_NAME.search(name) and name not in hiding]


def _means_us(name: str) -> bool:
    if name.startswith(PREFIX):
        return True
    first = name.partition("_")[0]
    return first != name and SequenceMatcher(None, first, PREFIX[:-1]).ratio() > 0.8


def _advice(name: str, known: set[str]) -> str:
    rest = name.partition("_")[2]
    if rest in known:  # GATEKEEPER_REDIS_URL
        return f": do you mean {rest}?"
    if rest in OF_THE_POLICY or get_close_matches(rest, ["THRESHOLD"], cutoff=0.8):
        return (
            ": it belongs to the policy, which is changed while the service runs (/console, PATCH /admin/v1/policy); "
            "a first threshold comes from the bundle (`gatekeeper calibrate --write`)"
        )
    found = get_close_matches(f"{PREFIX}{rest}", sorted(known), 1, cutoff=0.85)
    return f": do you mean {found[0]}?" if found else "; service/settings.py lists them"
