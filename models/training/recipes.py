"""What `gatekeeper tune` does where nothing is said: schedules by model, and the losses in words.

Without torch, so that --help, which prints it, is there at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; a cosine with a warm-up of at most 200 steps."""

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float = 0.0


# (stage 1, stage 2)
SCHEDULES = {
    "text-net": (Schedule(25, 2e-3, 64), Schedule(8, 5e-4, 64)),
    "small-cnn": (Schedule(12, 2e-3, 128), Schedule(4, 5e-4, 128)),
    "wide-cnn": (Schedule(12, 2e-3, 128), Schedule(4, 5e-4, 128)),
}
PRETRAINED = (Schedule(3, 5e-5, 32, 0.01), Schedule(2, 2e-5, 32, 0.01))
ADAPTED = (Schedule(3, 5e-4, 32), Schedule(2, 2e-4, 32))
# Of models that write text.
TEXT_NETS = (Schedule(20, 2e-3, 64), Schedule(5, 5e-4, 64))
TEXT_PRETRAINED = (Schedule(2, 2e-5, 16, 0.01), Schedule(1, 1e-5, 16, 0.01))
TEXT_ADAPTED = (Schedule(2, 5e-4, 16), Schedule(1, 2e-4, 16))
FEWEST_STEPS = (600, 200)  # a net that starts from nothing wants this many, however few the rows

STRENGTHS = {"confidence-penalty": 0.1, "label-smoothing": 0.1, "focal": 2.0}
LOSSES_IN_WORDS = {
    "gatekeeper": "right answers towards their label, wrong ones towards the uniform distribution (arXiv 2502.19335)",
    "soft-gatekeeper": "the same with the large model's probabilities as the target; needs --targets-from",
    "cross-entropy": "plain training for as long: the control that every other loss has to beat",
    "confidence-penalty": "cross-entropy plus the distance from the uniform distribution (Pereyra et al. 2017)",
    "label-smoothing": "cross-entropy with a little of every label (Szegedy et al. 2016)",
    "focal": "cross-entropy that counts hard items more (Lin et al. 2017)",
    "outlier-exposure": "gatekeeper with KL(U || p) in the place of KL(p || U) (Hendrycks et al. 2019)",
    "static-partition": "gatekeeper whose right and wrong are those after stage 1 (after Rawat et al. 2021)",
    "distillation": "half cross-entropy, half the large model's probabilities (Hinton 2015); needs --targets-from",
}


# What `gatekeeper compare` takes for --losses; the losses themselves are in study.py.
COMPARED_IN_WORDS = {
    name: LOSSES_IN_WORDS[name]
    for name in ("confidence-penalty", "label-smoothing", "focal", "outlier-exposure", "static-partition")
} | {
    "soft-gatekeeper": "gatekeeper with the large model's probabilities as the target",
    "aligned-gatekeeper": "gatekeeper plus half the KL to the large model's probabilities",
}


def losses_in_words(losses: dict[str, str]) -> str:
    """A line for each loss."""
    width = max(map(len, losses)) + 2
    return "\n".join(f"  {name:{width}}{words}" for name, words in losses.items())


def schedule_in_words(stage: int, field: str) -> str:
    """The default of a field of a stage (0 or 1) by model: `text-net 25, small-cnn 12, ...`."""
    by_model = {**SCHEDULES, "a pretrained model": PRETRAINED, "with --lora-rank": ADAPTED}
    return ", ".join(f"{name} {getattr(stages[stage], field):g}" for name, stages in by_model.items())
