"""What service/server/ uses of uvicorn's private state is still there: an upgrade that moves it fails here, by name.

uvicorn promises none of it. Whoever sees one of these fail compares the name with uvicorn's
protocols/http/httptools_impl.py and server.py, and mends service/server/ before the upgrade.
"""

import ast
import inspect
from typing import Any

import pytest
import uvicorn
from support.processes import ROOT
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

# Methods that ours extend or call, with the parameters that ours pass on.
METHODS: list[tuple[Any, str, str]] = [
    (HttpToolsProtocol, "__init__", "self config server_state app_state _loop"),
    (HttpToolsProtocol, "connection_made", "self transport"),
    (HttpToolsProtocol, "connection_lost", "self exc"),
    (HttpToolsProtocol, "data_received", "self data"),
    (HttpToolsProtocol, "eof_received", "self"),
    (HttpToolsProtocol, "on_message_begin", "self"),
    (HttpToolsProtocol, "on_headers_complete", "self"),
    (HttpToolsProtocol, "on_message_complete", "self"),
    (HttpToolsProtocol, "on_response_complete", "self"),
    (HttpToolsProtocol, "send_400_response", "self msg"),
    (HttpToolsProtocol, "pause_writing", "self"),
    (HttpToolsProtocol, "resume_writing", "self"),
    (HttpToolsProtocol, "_unset_keepalive_if_required", "self"),
    (RequestResponseCycle, "receive", "self"),
    (Server, "__init__", "self config"),
    (Server, "startup", "self sockets"),
    (Server, "capture_signals", "self"),
]
# Attributes that uvicorn sets on its own objects, and ours read or set.
ATTRIBUTES: dict[type, str] = {
    HttpToolsProtocol: "cycle expect_100_continue flow headers logger loop parser pipeline scope transport",
    RequestResponseCycle: "keep_alive more_body response_complete response_started scope waiting_for_100_continue",
    FlowControl: "write_paused",
    Server: "force_exit lifespan server_state should_exit",
    ServerState: "tasks",
}


@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS)
def test_a_method_takes_what_ours_pass_on(owner: type, name: str, parameters: str) -> None:
    method = getattr(owner, name, None)
    assert method is not None, f"uvicorn {uvicorn.__version__} has no {owner.__name__}.{name} any more"
    found = " ".join(inspect.signature(method).parameters)
    assert found == parameters, f"uvicorn {uvicorn.__version__}: {owner.__name__}.{name} takes other parameters"


@pytest.mark.parametrize(("owner", "names"), ATTRIBUTES.items())
def test_an_attribute_is_set_by_its_name(owner: type, names: str) -> None:
    missing = sorted(set(names.split()) - assigned(owner))
    assert missing == [], f"uvicorn {uvicorn.__version__}: {owner.__name__} no longer sets {missing}"


def test_status_lines_are_there_as_bytes() -> None:
    assert httptools_impl.STATUS_LINE[429].startswith(b"HTTP/1.1 429 ")


def test_the_tables_hold_all_that_ours_use() -> None:
    """Else a new use would have nobody to watch it."""
    of_uvicorn = assigned(HttpToolsProtocol) | {name for name in vars(HttpToolsProtocol) if not name.startswith("__")}
    watched = {name for owner, name, _ in METHODS if owner is HttpToolsProtocol}
    watched |= set(ATTRIBUTES[HttpToolsProtocol].split())
    used: set[str] = set()
    for path in (ROOT / "service" / "server").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
                used |= attributes_of_self(node)
    assert used, "no class of service/server/ extends uvicorn's protocol any more: this file can go"
    assert used & of_uvicorn <= watched


def attributes_of_self(tree: ast.AST) -> set[str]:
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if ast.unparse(node.value) in ("self", "super()")}


def assigned(owner: type) -> set[str]:
    """The attributes that a class sets on itself, or declares as a field."""
    tree = ast.parse(inspect.getsource(owner))
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return stored | set(inspect.get_annotations(owner))
