"""The fused token loss beside the dense one: seconds of forward and backward in turns, peak memory in children.

python -m models.study.cost tokens
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from models.gatekeeper import GatekeeperLoss
from models.training.token_loss import token_loss

POSITIONS = 450  # ten answers of 45 tokens
VOCABULARIES = ((49_152, 576), (262_144, 640))  # SmolLM2-135M, Gemma 3 270M: entries, hidden size
MIB = 1024**2


def run_tokens(rounds: int, *, whole: bool) -> None:
    """Print a row for the output layer trained and one for it frozen; whole: of the larger vocabulary too."""
    print(f"{POSITIONS} positions, forward and backward, {rounds} rounds in turns, {torch.get_num_threads()} threads")
    print("entries  output layer  dense s  fused s  ratio (low-high)   dense MiB  fused MiB  ratio")
    for entries, size in VOCABULARIES if whole else VOCABULARIES[:1]:
        for frozen in (False, True):
            took: dict[str, list[float]] = {"dense": [], "fused": []}
            for number in range(rounds + 1):
                for name in took if number % 2 else reversed(took):
                    seconds, _ = step(name, entries, size, frozen=frozen)
                    if number:  # the first is a warm-up
                        took[name].append(seconds)
            ratios = [fused / dense for dense, fused in zip(took["dense"], took["fused"], strict=True)]
            peaks = {name: _peak_of_child(name, entries, size, frozen=frozen) for name in took}
            print(
                f"{entries:7}  {'frozen' if frozen else 'trained':12}  {statistics.median(took['dense']):7.3f}  "
                f"{statistics.median(took['fused']):7.3f}  {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}-{max(ratios):.2f})    {peaks['dense'] / MIB:9.0f}  {peaks['fused'] / MIB:9.0f}  "
                f"{peaks['fused'] / peaks['dense']:5.2f}",
                flush=True,
            )


def step(name: str, entries: int, size: int, *, frozen: bool) -> tuple[float, int]:
    """(seconds, bytes at the peak beyond the inputs) of one forward and backward pass."""
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, size, requires_grad=True)
    weight = torch.randn(entries, size).mul_(0.05).requires_grad_(not frozen)
    labels = torch.randint(0, entries, (POSITIONS,))
    before = _reset_peak()
    began = time.perf_counter()
    if name == "fused":
        loss = token_loss(hidden, weight, labels, alpha=0.5)
    else:
        loss = GatekeeperLoss(0.5)(hidden @ weight.T, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began, _memory("VmHWM") - before


def _peak_of_child(name: str, entries: int, size: int, *, frozen: bool) -> int:
    """The same bytes in a process that does nothing else: what is freed elsewhere would be used again."""
    code = (
        "from models.study.token_cost import step; "
        f"step({name!r}, 1024, {size}, frozen={frozen}); "  # what torch allocates once is there then
        f"print(step({name!r}, {entries}, {size}, frozen={frozen})[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)  # noqa: S603  this Python, our module
    return int(done.stdout)


def _reset_peak() -> int:
    """The bytes that are there; from now on the peak is counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """VmHWM, the peak, or VmRSS, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)
