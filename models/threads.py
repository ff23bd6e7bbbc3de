"""How many threads the offline commands compute with: one, unless somebody asks for more.

torch's default, a thread for each core that it sees, makes tuning four to eight times slower where others use the cores
too: its threads wait for each other after every layer.
"""

import os
import sys

VARIABLE = "OMP_NUM_THREADS"  # what torch, numpy and scikit-learn all read when they are loaded
MOST = 1024


def use_threads(count: int | None) -> None:
    """From now on so many threads; None: as OMP_NUM_THREADS says, else one. Call it before torch is imported."""
    if count is not None:
        os.environ[VARIABLE] = str(count)
    else:
        os.environ.setdefault(VARIABLE, "1")
    torch = sys.modules.get("torch")
    if torch is not None and count is not None:
        torch.set_num_threads(count)


def threads_in_words() -> str:
    """`1 thread (--threads N for more)`, by what torch really does."""
    import torch  # noqa: PLC0415  whoever asks has it loaded

    count = torch.get_num_threads()
    return "1 thread (--threads N for more)" if count == 1 else f"{count} threads"
