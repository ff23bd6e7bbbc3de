"""A neighbour of a later release: a copy of the service with one more operator field, `cap`, in a process of its own.

`python later_release.py KIND WHERE GATE` (with the copy first on PYTHONPATH) runs a live policy on a store and answers
each line of JSON on stdin with the policy that it then has, or the history. It is started by `LaterRelease`.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FOLLOW_S = 5.0
LAST_FIELD = "    remote_timeout_s: RemoteTimeout = 10.0\n"
NEW_FIELD = "    cap: dict[str, float] = Field(default_factory=dict)\n"


def copy_with_one_field_more(folder: Path) -> Path:
    """The folder to put on PYTHONPATH. One line is all that a new field needs in the documents."""
    shutil.copytree(REPOSITORY / "service", folder / "service", ignore=shutil.ignore_patterns("__pycache__"))
    document = folder / "service" / "policy" / "document.py"
    text = document.read_text(encoding="utf-8")
    assert text.count(LAST_FIELD) == 1
    document.write_text(text.replace(LAST_FIELD, LAST_FIELD + NEW_FIELD), encoding="utf-8")
    return folder


class LaterRelease:
    """The process, as a context."""

    def __init__(self, folder: Path, kind: str, where: str, gate_digest: str = "gate-a") -> None:
        self._command = [sys.executable, __file__, kind, where, gate_digest]
        self._environment = os.environ | {"PYTHONPATH": str(folder)}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        assert self._answer() == {"cap": {}}, "what an empty policy of the later release says of its field"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    async def do(self, what: str, **arguments: Any) -> Any:
        """Its answer: a policy as JSON, or a list of them."""
        return await asyncio.to_thread(self._do, {"do": what} | arguments)

    def _do(self, line: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


async def serve(kind: str, where: str, gate_digest: str) -> None:
    from service.policy.document import OperatorFields, PolicyPatch, PolicyReplacement
    from service.policy.live import LivePolicy
    from service.policy.redis import RedisPolicyStore
    from service.policy.sqlite import SqlitePolicyStore

    store = RedisPolicyStore(where, 5.0) if kind == "redis" else SqlitePolicyStore(Path(where))
    live = LivePolicy(
        store,
        name="bundle",
        gate_digest=gate_digest,
        default_threshold=0.5,
        threshold_range=(0.0, 1.0),
        last_good_path=None,
        poll_s=0.2,
        on_change=lambda _: None,
        on_store_up=lambda _: None,
    )
    await live.start()
    print(OperatorFields(threshold=0.5).model_dump_json(include={"cap"}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        if asked["do"] == "patch":
            await live.patch(PolicyPatch.model_validate(asked["fields"]), updated_by="later", if_match=None)
        elif asked["do"] == "replace":
            whole = PolicyReplacement.model_validate(asked["fields"])
            await live.replace(whole, updated_by="later", if_match=live.snapshot.version)
        elif asked["do"] == "rollback":
            await live.rollback(asked["version"], updated_by="later")
        elif asked["do"] == "follow":
            async with asyncio.timeout(FOLLOW_S):
                while live.snapshot.version < asked["version"]:
                    await asyncio.sleep(0.01)
        if asked["do"] == "history":
            versions = [policy.model_dump_json() for policy in await live.history(100)]
            print(f"[{','.join(versions)}]", flush=True)
        else:
            print(live.snapshot.model_dump_json(), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
