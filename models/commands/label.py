"""`gatekeeper label`: an LLM labels texts, so that a small model can be tuned, calibrated and certified against it."""

import argparse
import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.commands.options import runs
from models.commands.process import say
from models.errors import InputError

BUDGET_SPENT = 3  # the exit code of a run that the budget has ended
KEY_VARIABLE = "GATEKEEPER_REMOTE_KEY"


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, by whom, and for how much."""

    data: Path
    labels: Path
    remote_url: str
    remote_model: str
    output: Path
    text_column: str
    human_labels: str | None
    descriptions: Path | None
    prompt: Path | None
    dry_run: bool
    budget: float | None
    price_prompt: float
    price_completion: float
    concurrency: int
    twice: int
    seed: int


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser("label", help="let an LLM label texts: a table for tune and for --large")
    parser.add_argument("--data", type=Path, required=True, help="a .csv, .jsonl or .parquet file with texts")
    parser.add_argument("--labels", type=Path, required=True, help="a file with a label a line, or a bundle")
    parser.add_argument("--remote-url", required=True, metavar="URL", help="the LLM's server, with or without /v1")
    parser.add_argument("--remote-model", required=True, metavar="M", help="the LLM's name there")
    parser.add_argument("--output", type=Path, required=True, help="the .parquet file of texts and labels")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--human-labels", metavar="NAME", help="a column of human labels, to compare with")
    parser.add_argument("--descriptions", type=Path, metavar="FILE", help="JSON of labels to what they mean")
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="in the place of the question: {labels} and {text}")
    money = parser.add_argument_group("money: a cost is told where a price is given")
    money.add_argument("--dry-run", action="store_true", help="estimate the cost, ask nothing")
    money.add_argument("--price-prompt", type=float, default=0.0, metavar="P", help="of a million prompt tokens")
    money.add_argument(
        "--price-completion", type=float, default=0.0, metavar="P", help="of a million completion tokens"
    )
    money.add_argument("--budget", type=float, metavar="B", help="of this run; the same command goes on later")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls at once; default: %(default)s")
    parser.add_argument("--twice", type=int, default=0, metavar="N", help="ask about so many texts again: is it sure?")
    parser.add_argument("--seed", type=int, default=0, help="of the texts that are asked twice; default: 0")
    runs(parser, run, LabelOptions)


def run(options: LabelOptions) -> int:
    """Exit code 3: the budget is spent."""
    from models.labelling.client import LlmClient
    from models.labelling.label import answer_all, estimate, questions, summary, write_table
    from models.labelling.store import AnswerStore
    from models.labelling.texts import read_labels, read_texts

    _check_output(options)
    _check(options)
    texts = read_texts(options.data, options.text_column, options.human_labels)
    plan = _plan(options, read_labels(options.labels))
    calls = questions(texts, plan)
    store = AnswerStore(options.output.with_name(f"{options.output.name}.answers.jsonl"))
    wanted = [call for call in calls if call.key not in store.answers]
    key = os.environ.get(KEY_VARIABLE) or None
    client = LlmClient(options.remote_url, options.remote_model, plan.prompt, key, say)
    prompt, completion, cost = estimate(wanted, plan.prices)
    known = f", about {cost:.4f}" if plan.prices.known else ""
    tokens = f"about {prompt:,} prompt and {completion:,} completion tokens"
    say(f"{len(wanted):,} of {len(calls):,} calls are to be made: {tokens}{known}")
    if options.dry_run:
        return 0
    say("note: terms of an LLM's provider may forbid to train a model on its answers: look before you do")

    async def asking() -> bool:
        try:
            return (await answer_all(client, store, wanted, plan, say))[1]
        finally:
            await client.aclose()

    ended = asyncio.run(asking()) if wanted else False
    if ended:
        say(f"the budget is spent: the answers are kept in {store.path}; the same command goes on from there")
        return BUDGET_SPENT
    write_table(options.output, texts, [store.answers[call.key] for call in calls if call.again == 0], plan.model)
    left = len(texts.texts) - sum(1 for call in calls if not call.again and store.answers[call.key].label is not None)
    if left:
        say(f"{left:,} texts without a label are in {options.output.with_suffix('.unlabelled.csv')}")
    for line in summary(texts, calls, store, plan):
        print(line)
    say(f"wrote {options.output}; next: gatekeeper tune --data {options.output}")
    return 0


def _check_output(options: LabelOptions) -> None:
    """Nothing that somebody else has made is replaced. Raises InputError."""
    if options.output.suffix != ".parquet" or options.output.is_dir():
        raise InputError(f"--output is a .parquet file, not {options.output}")
    if options.output.exists():
        from models.data.parquet_files import labelled_by

        if options.output.resolve() == options.data.resolve() or labelled_by(options.output) is None:
            raise InputError(f"{options.output} is there and was not written by this command: name another file")


def _check(options: LabelOptions) -> None:
    """Every number, before anything is paid for. Raises InputError."""
    if not options.remote_model.strip():
        raise InputError("--remote-model is empty: name the LLM")
    if not 1 <= options.concurrency <= 1_000:
        raise InputError(f"--concurrency must be from 1 to 1000, not {options.concurrency}")
    if options.twice < 0:
        raise InputError(f"--twice must be 0 or more, not {options.twice}")
    for name in ("price_prompt", "price_completion"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(options, name):g}")
    if options.budget is not None:
        if not 0 < options.budget < float("inf"):
            raise InputError(f"--budget must be above 0, not {options.budget:g}")
        if not options.price_prompt and not options.price_completion:
            raise InputError("--budget needs --price-prompt or --price-completion: without a price nothing is spent")


def _plan(options: LabelOptions, labels: tuple[str, ...]) -> Any:
    from models.files import MIB, read_bounded, read_json
    from models.labelling.label import Plan, Prices
    from models.llm_labels import TEMPLATE, LabelPrompt

    try:
        described = {} if options.descriptions is None else read_json(options.descriptions, MIB)
        template = TEMPLATE if options.prompt is None else read_bounded(options.prompt, MIB).decode("utf-8")
        if not isinstance(described, dict) or not all(isinstance(text, str) for text in described.values()):
            raise InputError(f"{options.descriptions} is no JSON object of labels to what they mean")
        prompt = LabelPrompt(labels, described, template)
    except (OSError, ValueError) as error:
        raise InputError(f"the question to the LLM cannot be made: {error}") from None
    prices = Prices(options.price_prompt, options.price_completion)
    return Plan(options.remote_model, prompt, prices, options.budget, options.concurrency, options.twice, options.seed)
