"""What service/server/ uses of uvicorn's private state is still there: an upgrade that moves it fails here, by name.

uvicorn promises none of it. Whoever sees one of these fail compares the name with uvicorn's
protocols/http/httptools_impl.py and server.py, and mends service/server/ before the upgrade.
"""

import ast
import inspect
from collections import defaultdict
from typing import Any

import pytest
import uvicorn
from support.processes import ROOT
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols import utils
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

from service.server.connections import _Transport

# Methods that ours extend, replace or call, with the parameters that ours pass on.
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
    (FlowControl, "resume_reading", "self"),
    (Server, "__init__", "self config"),
    (Server, "run", "self sockets"),
    (Server, "startup", "self sockets"),
    (Server, "capture_signals", "self"),
    (LifespanOn, "shutdown", "self"),
]
# Attributes that uvicorn sets on its own objects, and ours read or set.
ATTRIBUTES: dict[type, str] = {
    HttpToolsProtocol: "cycle expect_100_continue flow headers logger loop parser pipeline scope transport",
    RequestResponseCycle: (
        "body disconnected keep_alive message_event more_body response_complete response_started scope "
        "waiting_for_100_continue"
    ),
    FlowControl: "write_paused",
    Server: "force_exit lifespan server_state should_exit",
    ServerState: "tasks",
}
# The names, of variables and of attributes, by which service/server/ has uvicorn's objects.
HELD: dict[str, type] = {
    "connection": HttpToolsProtocol,
    "cycle": RequestResponseCycle,
    "new": RequestResponseCycle,
    "flow": FlowControl,
    "lifespan": LifespanOn,
    "server": Server,
    "server_state": ServerState,
}
# The classes that ours extend, by the name that stands in a list of bases.
EXTENDED: dict[str, type] = {
    "HttpToolsProtocol": HttpToolsProtocol,
    "MendedProtocol": HttpToolsProtocol,
    "uvicorn.Server": Server,
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


def test_our_transport_has_all_that_uvicorn_uses_of_one() -> None:
    trees = [ast.parse(inspect.getsource(module)) for module in (httptools_impl, flow_control, utils)]
    holders = ("transport", "self.transport", "self._transport")
    used = {node.attr for tree in trees for node in attributes(tree) if ast.unparse(node.value) in holders}
    assert "write" in used
    for_websockets = {"set_protocol"}  # ours runs without
    assert used - for_websockets <= set(_Transport.__slots__), f"uvicorn {uvicorn.__version__}"


@pytest.mark.parametrize("owner", sorted({*HELD.values(), *EXTENDED.values()}, key=lambda owner: owner.__name__))
def test_the_tables_hold_what_ours_use_and_nothing_else(owner: type) -> None:
    """Else a new use would have nobody to watch it. It also fails where uvicorn takes a name that is one of ours."""
    watched = {name for watched, name, _ in METHODS if watched is owner} | set(ATTRIBUTES.get(owner, "").split())
    used = used_by_ours()[owner]
    if owner in EXTENDED.values():  # the same objects have names of ours
        used &= assigned(owner) | set(vars(owner))
    assert used == watched


def test_what_ours_hold_has_a_name_that_is_known_here() -> None:
    """A variable of another name, assigned or passed, would hide what is used of it. Those of loops are not seen."""
    unknown = set()
    for node in (node for tree in ours() for node in ast.walk(tree)):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                unknown |= {name for name, value in pairs(target, node.value) if HELD.get(name) is not held(value)}
        elif isinstance(node, ast.arg) and node.annotation is not None:
            kind = ast.unparse(node.annotation).rpartition(".")[2].strip("\"'")
            if kind in {owner.__name__ for owner in HELD.values()} | {"Connection"} and node.arg not in HELD:
                unknown.add(node.arg)
    assert unknown == set()


def used_by_ours() -> dict[type, set[str]]:
    """What service/server/ reads, sets, calls or defines, by the class of uvicorn's that has or may have it."""
    used: dict[type, set[str]] = defaultdict(set)
    for tree in ours():
        for node in attributes(tree):
            if (owner := held(node.value)) is not None:
                used[owner].add(node.attr)
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for owner in (EXTENDED[base] for base in map(ast.unparse, node.bases) if base in EXTENDED):
                methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
                of_self = (part for part in attributes(node) if ast.unparse(part.value) in ("self", "super()"))
                used[owner] |= {method.name for method in methods} | {part.attr for part in of_self}
    return used


def held(value: ast.expr) -> type | None:
    """The class of uvicorn's object that `value` is, by its last name."""
    last = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""
    return HELD.get(last)


def pairs(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    """The variables of an assignment, each with what is assigned to it."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return [pair for both in zip(target.elts, value.elts, strict=True) for pair in pairs(*both)]
    return [(target.id, value)] if isinstance(target, ast.Name) and held(value) is not None else []


def attributes(tree: ast.AST) -> list[ast.Attribute]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def ours() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "service" / "server").glob("*.py")]


def assigned(owner: type) -> set[str]:
    """The attributes that a class sets on itself, or declares as a field."""
    stored = {
        node.attr
        for node in attributes(ast.parse(inspect.getsource(owner)))
        if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return stored | set(inspect.get_annotations(owner))
