"""Whose name a request calls the service by, and whose page sends it: what a browser can be tricked into.

A page of another site may post a text to any address that its visitor reaches, and a name that its owner points at
127.0.0.1 makes the service look like his own (DNS rebinding).
"""

import ipaddress
from collections.abc import Collection, Mapping

from service.errors import CrossSite, ForeignHost, RequestError

READING = ("GET", "HEAD", "OPTIONS")
HOSTS_REMEMBERED = 64


class Sites:
    """`allowed`: names without a port; None: any name that nobody can register, `*` among them: any at all."""

    def __init__(self, allowed: Collection[str] | None) -> None:
        self._allowed = None if allowed is None else {name.lower() for name in allowed}
        self._any = self._allowed is not None and "*" in self._allowed
        self._known: set[bytes] = set()  # values of `host` that were found fine

    def refusal(self, method: str, headers: Mapping[bytes, bytes]) -> RequestError | None:
        """Why this request is not answered, if so. From a client without `host` and `origin` anything is."""
        host = headers.get(b"host")
        if host is not None and host not in self._known:
            if not self._is_ours(_name(host)):
                return ForeignHost(
                    "this service is not asked for by the name in `host`: use its address, or add the name to "
                    "GATEKEEPER_ALLOWED_HOSTS"
                )
            if len(self._known) < HOSTS_REMEMBERED:
                self._known.add(host)
        if method in READING:
            return None
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if site is None and origin is None:
            return None
        # Browsers say it themselves, where they trust the address; else the page's origin is compared.
        foreign = site not in (b"same-origin", b"none") if site is not None else self._is_foreign(origin, host)
        return CrossSite("a page of another site may not send this request") if foreign else None

    def _is_ours(self, name: str) -> bool:
        if self._any:
            return True
        if self._allowed is not None:
            return name in self._allowed
        return "." not in name or name.endswith(".localhost") or _is_address(name)

    def _is_foreign(self, origin: bytes | None, host: bytes | None) -> bool:
        page, ours = _place((origin or b"").partition(b"://")[2]), _place(host or b"")
        # A proxy may leave the port out of what it passes on.
        if page and (page == ours or _name(page) == ours.decode("latin-1")):
            return False
        # Behind a proxy that calls us by another name, pages come from one that is allowed.
        name = _name(page)
        return self._allowed is None or name not in self._allowed or name == _name(ours)


def _place(host: bytes) -> bytes:
    """In lower case, without the port that a scheme has anyway."""
    return host.lower().removesuffix(b":80").removesuffix(b":443")


def _name(host: bytes) -> str:
    """Without the port, in lower case, no dot at its end; of an IPv6 address what stands in the brackets."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
