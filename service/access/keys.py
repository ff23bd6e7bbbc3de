"""API keys: who may call, for what, and how much. Configured are names and hashes alone, never a key.

A key reads `gk_<name>_<secret>`. The name is public and finds the entry in a dictionary; the secret is 256 random bits,
so a plain SHA-256 of the whole key is enough: a slow hash protects what people can remember, and would cost a request
milliseconds.
"""

import asyncio
import errno
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError

from models.files import MIB, bounded, open_regular
from service.errors import Forbidden, StartupError, Unauthorized

logger = logging.getLogger(__name__)

Scope = Literal["classify", "override"]
Header = tuple[bytes, bytes]

NAME = r"[a-z0-9-]{1,32}"
MIN_SECRET_CHARS = 32
MAX_KEY_BYTES = 256
MAX_FILE_BYTES = 4 * MIB  # some 20,000 keys
CHECK_INTERVAL_S = 1.0
LOCK_WAIT_S = 2.0
WINDOWS_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}

_NOBODYS_DIGEST = bytes(32)
_HOW_TO_SEND = "send your API key: `Authorization: Bearer gk_...`, or the header x-api-key"
_HOW_TO_HASH = "only its hash belongs here: `gatekeeper keys new NAME` makes both, or `printf %s KEY | sha256sum`"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many items a key may send in any `window_s` seconds."""

    items: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request; name None: no keys are configured, and everybody may do everything."""

    name: str | None
    scopes: frozenset[Scope]
    limit: RateLimit | None = None
    headers: tuple[Header, ...] = ()

    def check_overrides(self, threshold: float | None, route: str) -> None:
        """A threshold or route of the request's own spends the large model's budget. Raises Forbidden."""
        if (threshold is not None or route != "auto") and "override" not in self.scopes:
            raise Forbidden("this API key may not set parameters.threshold or parameters.route: it needs `override`")


ANYONE = Caller(None, frozenset({"classify", "override"}))


def _hash_not_key(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise PydanticCustomError("sha256", "must be 64 hexadecimal digits; " + _HOW_TO_HASH)
    return value.lower()


def _limit(value: object) -> object:
    if value is not None and (not isinstance(value, str) or parse_limit(value) is None):
        raise PydanticCustomError("limit", "must be items/window, like 100/second, 6000/minute, an hour or a day")
    return value


class KeyEntry(BaseModel):
    """What is configured of one key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=f"^{NAME}$")
    sha256: Annotated[str, BeforeValidator(_hash_not_key)]
    scopes: list[Scope] = Field(default=["classify"], min_length=1)
    limit: Annotated[str | None, BeforeValidator(_limit)] = None


def parse_limit(text: str) -> RateLimit | None:
    """`100/second` -> RateLimit(100, 1); None for what is no limit."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", text)
    return RateLimit(int(found[1]), WINDOWS_S[found[2]]) if found else None


def new_key(name: str, scopes: Sequence[str], limit: str | None) -> tuple[str, KeyEntry]:
    """A fresh key, to be shown once, and the entry to configure. Raises StartupError for a bad name, scope or limit."""
    key = f"gk_{name}_{secrets.token_urlsafe(32)}"
    entry = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": list(scopes), "limit": limit}
    return key, entries_from([entry], "the new key")[0]


def entries_from(documents: Sequence[object], source: str) -> list[KeyEntry]:
    """Checked entries. Raises StartupError that names source, entry and fault, and repeats no value."""
    entries: list[KeyEntry] = []
    names: set[str] = set()
    for number, document in enumerate(documents, start=1):
        name = document.get("name") if isinstance(document, dict) else None
        shown = f" ({name})" if isinstance(name, str) and re.fullmatch(NAME, name) else ""
        where = f"{source}: entry {number}{shown}"
        try:
            entry = KeyEntry.model_validate(document)
        except ValidationError as error:
            raise StartupError(f"{where}: {_fault(error)}") from None
        if entry.name in names:
            raise StartupError(f"{where}: the name is taken by an earlier entry")
        names.add(entry.name)
        entries.append(entry)
    return entries


def _fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False)
    # A key instead of its hash is a missing sha256 as well; what it is comes first.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        if field in ("key", "secret", "api_key", "token"):
            return f"`{field}`: " + _HOW_TO_HASH
        return "a field that an entry does not have; it has name, sha256, scopes, limit"
    if first["type"] == "string_pattern_mismatch":
        return "name: must be 1 to 32 of a-z, 0-9 and -"
    return f"{field}: {first['msg']}" if field else "must be an object with name and sha256"


def parse_line(line: str, source: str) -> list[KeyEntry]:
    """`name:sha256[:scope+scope[:limit]]`, separated by commas or blanks. Raises StartupError, also for none at all."""
    parts = re.split(r"[,\s]+", line.strip(", \t\r\n"))
    if parts == [""]:
        raise StartupError(f"{source} is set but holds no entry: unset it to have no API keys, or fill it in")
    documents = []
    for number, part in enumerate(parts, start=1):
        fields = part.split(":")
        if len(fields) < 2 or len(fields) > 4:
            fault = f"must be name:sha256, then :scopes and :limit if need be; {_HOW_TO_HASH}"
            raise StartupError(f"{source}: entry {number}: {fault}")
        document: dict[str, object] = {"name": fields[0], "sha256": fields[1]}
        if len(fields) > 2 and fields[2]:
            document["scopes"] = fields[2].split("+")
        if len(fields) > 3:
            document["limit"] = fields[3]
        documents.append(document)
    return entries_from(documents, source)


def read_file(path: Path) -> list[KeyEntry]:
    """The entries of a JSON file, or TOML by its suffix: `keys`, a list. Raises StartupError."""
    try:
        content = _content(path).decode("utf-8")
        document = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
    except PermissionError as error:
        who = f"this process runs as user {os.geteuid()}: let that user read the file and enter its folder"
        raise StartupError(f"{path}: cannot be read ({error.strerror}); {who}") from None
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # JSON, TOML and UTF-8 errors alike
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise StartupError(f"{path}: is no {'TOML' if path.suffix == '.toml' else 'JSON'}{at}") from None
    if not isinstance(document, dict) or set(document) != {"keys"} or not isinstance(document["keys"], list):
        raise StartupError(f'{path}: must be {{"keys": [...]}}, a list of entries, and nothing else')
    return entries_from(document["keys"], str(path))


def _content(path: Path) -> bytes:
    """Raises OSError, also while `gatekeeper keys` writes: half of one version and half of another is neither."""
    with open_regular(path, MAX_FILE_BYTES) as stream:
        lock(stream, fcntl.LOCK_SH)
        return bounded(stream, MAX_FILE_BYTES)


def lock(stream: IO[bytes] | int, kind: int) -> None:
    """Take a lock, for which a moment is waited. Raises OSError where somebody else keeps it."""
    give_up = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise OSError(errno.EBUSY, "another program holds a lock on it: try again") from None
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return
        else:
            return


class ApiKeys:
    """The keys in force. From a file they follow it while the service runs; without any source, everybody may call."""

    def __init__(
        self,
        line: SecretStr | None,
        path: Path | None,
        *,
        source: str,
        on_names: Callable[[Iterable[str]], None],
        on_current: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`source` names the variable of `line`; `on_names` hears the names at start and after a reload; `on_current`
        hears whether the keys in force are those of the file.

        Raises StartupError for keys that cannot be read, and where a source is set that holds none.
        """
        self.guarded = line is not None or path is not None
        self._fixed = [] if line is None else parse_line(line.get_secret_value(), source)
        self._path = path
        self._on_names = on_names
        self._on_current = on_current
        self._trouble: str | None = None  # why the file was not taken up when it was last looked at
        self._seen = _signature(path)
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        from_file = [] if path is None else read_file(path)
        if self.guarded and not self._fixed and not from_file:
            raise StartupError(f"{path} holds no key: `gatekeeper keys new NAME --file {path}` makes one")
        self._use(from_file)
        on_current(True)

    def authenticate(self, headers: Iterable[Header]) -> Caller:
        """The caller, from raw ASGI headers. Raises Unauthorized, or Forbidden for a key without `classify`."""
        if not self.guarded:
            return ANYONE
        key = _sent(headers)
        parts = key.split(b"_", 2)
        # An unknown name is hashed and compared as well: how long a refusal takes tells nothing.
        digest, caller = self._callers.get(parts[1] if len(parts) == 3 else b"", (_NOBODYS_DIGEST, None))
        matches = hmac.compare_digest(hashlib.sha256(key).digest(), digest)
        if caller is None or not matches or len(parts[2]) < MIN_SECRET_CHARS:
            raise Unauthorized("this API key is not known here: check it, or ask for a new one")
        if "classify" not in caller.scopes:
            raise Forbidden("this API key may not classify: it lacks the scope `classify`")
        return caller

    async def follow(self) -> None:
        """Follow the file, for ever. A version that cannot be read leaves the keys as they are, and is tried again."""
        while self._path is not None:
            await asyncio.sleep(CHECK_INTERVAL_S)
            signature = await asyncio.to_thread(_signature, self._path)
            if signature == self._seen and self._trouble is None:
                continue
            self._seen = signature  # before the file is read: what changes meanwhile is seen next time
            try:
                self._use(await asyncio.to_thread(read_file, self._path))
            except StartupError as error:
                self._tell_trouble(error.detail)
            else:
                self._trouble = None
                self._on_current(True)
                logger.info("API keys reloaded", extra={"names": [name.decode() for name in self._callers]})

    def _tell_trouble(self, why: str) -> None:
        """Once for each reason, not every second."""
        if why != self._trouble:
            logger.warning("API keys not reloaded, the old ones stay", extra={"why": why})
        self._trouble = why
        self._on_current(False)

    def _use(self, from_file: list[KeyEntry]) -> None:
        callers = {}
        for entry in (*self._fixed, *from_file):
            if entry.name.encode() in callers:
                raise StartupError(f"{self._path}: the name {entry.name} is taken by an entry of the variable")
            callers[entry.name.encode()] = (bytes.fromhex(entry.sha256), _caller(entry))
        self._on_names([name.decode() for name in callers])
        self._callers = callers


def _caller(entry: KeyEntry) -> Caller:
    limit = parse_limit(entry.limit) if entry.limit else None
    headers: tuple[Header, ...] = ()
    if limit is not None:
        headers = ((b"ratelimit-policy", f'"items";q={limit.items};w={limit.window_s};qu="items"'.encode()),)
    return Caller(entry.name, frozenset(entry.scopes), limit, headers)


def _sent(headers: Iterable[Header]) -> bytes:
    """The one key of a request; other schemes of Authorization may stand beside x-api-key. Raises Unauthorized."""
    keys = []
    for name, value in headers:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    if not keys:
        raise Unauthorized(_HOW_TO_SEND)
    if len(keys) > 1:
        raise Unauthorized("more than one API key was sent: send one, in one header")
    if not keys[0].startswith(b"gk_") or len(keys[0]) > MAX_KEY_BYTES:
        raise Unauthorized("this is no API key: one starts with gk_; " + _HOW_TO_SEND)
    return keys[0]


def _signature(path: Path | None) -> tuple[int, int, int, int] | None:
    """Changes with the file's content, mode and owner, and when another file takes its place."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
