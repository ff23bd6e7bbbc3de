"""`gatekeeper label`: an LLM's labels for texts that have none, within a budget, resumable.

gatekeeper label --data texts.csv --labels labels.txt --remote-url URL --remote-model M --output labelled.parquet
"""

import asyncio
import csv
import io
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.parquet_files import LABELLED_BY
from models.errors import InputError
from models.labelling.client import CHARS_A_TOKEN, LlmClient
from models.labelling.store import AnswerStore, Kept, key_of
from models.labelling.texts import Texts
from models.llm_labels import LabelPrompt
from models.progress import Waiting
from models.replacing import write_whole, write_whole_text, writing

Say = Callable[[str], None]
ANSWER_TOKENS = 12  # of a label as JSON, for an estimate
HOPELESS = 20  # answers, of which none is a label
MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in whatever currency; 0: not known, and nothing is said of cost."""

    prompt: float = 0.0
    completion: float = 0.0

    @property
    def known(self) -> bool:
        """Whether a cost can be told."""
        return self.prompt > 0 or self.completion > 0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


@dataclass(frozen=True)
class Plan:
    """What is to be asked. budget: no call begins that could go beyond it; twice: how many texts are asked again."""

    model: str
    prompt: LabelPrompt
    prices: Prices
    budget: float | None
    concurrency: int
    twice: int
    seed: int


class Question(NamedTuple):
    """One call: which text, and the how manieth time."""

    place: int
    again: int
    key: str
    text: str
    tokens: int  # of the whole question, estimated from above


def questions(texts: Texts, plan: Plan) -> list[Question]:
    """Every call there is to make, the second ones last."""
    asked = [plan.prompt.question(text) for text in texts.texts]
    drawn = random.Random(plan.seed).sample(range(len(asked)), min(plan.twice, len(asked)))
    calls = [(place, 0) for place in range(len(asked))] + [(place, 1) for place in sorted(drawn)]
    return [
        Question(
            place,
            again,
            key_of(plan.model, asked[place], again),
            texts.texts[place],
            len(asked[place]) // CHARS_A_TOKEN + 1,
        )
        for place, again in calls
    ]


def estimate(wanted: Sequence[Question], prices: Prices) -> tuple[int, int, float]:
    """(prompt tokens, completion tokens, cost) of calls that are still to be made."""
    prompt, completion = sum(question.tokens for question in wanted), len(wanted) * ANSWER_TOKENS
    return prompt, completion, prices.of(prompt, completion)


async def answer_all(
    client: LlmClient, store: AnswerStore, wanted: Sequence[Question], plan: Plan, say: Say
) -> tuple[float, bool]:
    """(what the calls of this run have cost, whether the budget ended it). Raises InputError."""
    queue, spent, committed, ended, first = iter(wanted), 0.0, 0.0, False, Counter[str]()

    async def work(progress: Callable[[int], None]) -> None:
        nonlocal spent, committed, ended
        for question in queue:
            most = plan.prices.of(question.tokens, client.dialect.most_tokens)
            if plan.budget is not None and spent + committed + most > plan.budget:
                ended = True
                return
            committed += most
            answered = await client.ask(question.text)
            committed -= most
            spent += plan.prices.of(answered.prompt_tokens, answered.completion_tokens)
            store.keep(Kept(question.key, *answered))
            progress(1)
            first[answered.fault] += 1
            if first.total() == HOPELESS and not first[""]:
                faults = ", ".join(f"{count} {fault}" for fault, count in first.most_common())
                raise InputError(
                    f"none of the first {HOPELESS} answers is a label ({faults}): look at the labels and the model"
                )

    with store.appending(), Waiting(f"asking {plan.model}", len(wanted), "texts") as progress:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(plan.concurrency):
                    group.create_task(work(progress))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            said = f"; this run has cost {spent:.4f}" if plan.prices.known else ""
            say(f"{first.total():,} of {len(wanted):,} calls were answered, and are kept{said}")
    return spent, ended


def write_table(path: Path, texts: Texts, found: Sequence[Kept], model: str) -> None:
    """text, label, score, and human where people gave labels; texts without a label go to a csv beside it.

    Raises InputError.
    """
    rows = [place for place, answer in enumerate(found) if answer.label is not None]
    columns: dict[str, Any] = {
        "text": pa.array([texts.texts[place] for place in rows], pa.string()),
        "label": pa.array([found[place].label for place in rows], pa.string()),
        "large_label": pa.array([found[place].label for place in rows], pa.string()),  # as --large calls it
        "score": pa.array([found[place].score for place in rows], pa.float64()),
    }
    if texts.human is not None:
        columns["human"] = pa.array([texts.human[place] for place in rows], pa.string())
    table = pa.table(columns).replace_schema_metadata({LABELLED_BY: model.encode()})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda scratch: pq.write_table(table, scratch))
    left = [(texts.texts[place], answer.fault) for place, answer in enumerate(found) if answer.label is None]
    beside = path.with_suffix(".unlabelled.csv")
    with writing(beside):
        beside.unlink(missing_ok=True)
        if left:
            lines = io.StringIO()
            csv.writer(lines).writerows([("text", "fault"), *left])
            write_whole_text(beside, lines.getvalue())


def summary(texts: Texts, calls: Sequence[Question], store: AnswerStore, plan: Plan) -> list[str]:
    """What is to be known of the labels, a line each."""
    first = [store.answers[call.key] for call in calls if call.again == 0]
    labelled = [answer for answer in first if answer.label is not None]
    lines = [f"{len(labelled):,} of {len(first):,} texts have a label of {plan.model}"]
    faults = Counter(answer.fault for answer in first if answer.label is None)
    if faults:
        lines.append("the others: " + ", ".join(f"{count:,} {fault}" for fault, count in faults.most_common()))
    pairs = [
        (store.answers[call.key].label, first[call.place].label)
        for call in calls
        if call.again and call.key in store.answers
    ]
    if pairs:
        same = sum(one == other for one, other in pairs) / len(pairs)
        lines.append(f"asked twice, {plan.model} gave the same label to {same:.1%} of {len(pairs):,} texts")
    if texts.human is not None:
        agree = sum(answer.label == human for answer, human in zip(first, texts.human, strict=True)) / len(first)
        lines.append(f"it agrees with the human labels on {agree:.1%} of {len(first):,} texts")
    if plan.prices.known:
        used = [store.answers[call.key] for call in calls if call.key in store.answers]
        cost = plan.prices.of(sum(a.prompt_tokens for a in used), sum(a.completion_tokens for a in used))
        lines.append(f"these answers have cost {cost:.4f} in all")
    return lines
