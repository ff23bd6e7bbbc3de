"""Writing answers: the tokens of transformers' generate, the entropies of its dense logits, whatever else is asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.text_models import word_tokenizer, write_tiny_llama, write_tiny_paligemma, write_tiny_t5

from models.errors import InputError
from models.generation import Generation, Message, Prompt, QuantileRule, TextTask
from models.inference.generation.images import ImageTextReader, load_processor
from models.inference.generation.reader import Reader, TextReader, load_tokenizer
from models.inference.generation.text_model import TextModel
from models.inference.generation.traces import QUANTILES, Trace, scores_of
from models.inference.generation.weights import open_weights

MODELS: dict[str, tuple[TextTask, Any]] = {
    "llama": ("text-generation", write_tiny_llama),
    "t5": ("text2text-generation", write_tiny_t5),
    "paligemma": ("image-text-to-text", write_tiny_paligemma),
}
TEXTS = ("what is the colour", "a red circle is what colour of the square", "yes", "one two")


def generation(vocabulary: int, **others: Any) -> Generation:
    fields = {"prompt": "plain", "template": "{prompt}", "end_tokens": (2,), "max_prompt_tokens": 40}
    return Generation(**{**fields, "max_new_tokens": 6, "vocabulary": vocabulary, **others})


def prompts(*, images: bool) -> list[Prompt]:
    pixels = [np.full((20, 30, 3), 60 * place, dtype=np.uint8) if images else None for place in range(len(TEXTS))]
    return [Prompt((Message("user", text),), image) for text, image in zip(TEXTS, pixels, strict=True)]


def open_model(kind: str, directory: Path, **others: Any) -> TextModel:
    task, write = MODELS[kind]
    write(directory)
    model = open_weights(directory, task).eval()
    reader: Reader
    if kind == "paligemma":
        processor = load_processor(directory)
        reader = ImageTextReader(processor, generation(len(processor.tokenizer), **others), 0)
    else:
        tokenizer = load_tokenizer(directory)
        reader = TextReader(tokenizer, generation(len(tokenizer), **others), 0)
    return TextModel(model, reader, reader.generation, 0)


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_generate_and_entropies_those_of_dense_logits(kind: str, tmp_path: Path) -> None:
    model = open_model(kind, tmp_path)
    asked = prompts(images=kind == "paligemma")
    together = model.draft(asked)
    for prompt, draft in zip(asked, together, strict=True):
        inputs = model.reader.batch([model.reader.read(prompt)], left=True)
        reference = model.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=2,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = reference.sequences[0, -len(reference.logits) :].tolist()
        assert list(draft.trace.tokens) == tokens
        log_p = torch.log_softmax(torch.cat(reference.logits), dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        assert np.abs(draft.trace.entropy - entropy.numpy()).max() < 1e-4
        assert np.abs(draft.trace.log_prob - log_p.amax(dim=-1).numpy()).max() < 1e-4
        assert draft.trace.ended == (tokens[-1] == 2)
        # The output layer is linear: of the mean state it makes the mean logits.
        made = model.model.get_output_embeddings()(torch.tensor(draft.trace.state, dtype=torch.float32))
        assert (made - torch.cat(reference.logits).mean(dim=0)).abs().max() < 1e-4
        (alone,) = model.draft([prompt])
        assert alone.trace.tokens == draft.trace.tokens
        assert np.abs(alone.trace.entropy - draft.trace.entropy).max() < 1e-4


def test_what_lies_beyond_the_vocabulary_is_never_written_and_counts_nowhere(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, vocabulary=64)
    tokenizer = load_tokenizer(tmp_path)
    reader = TextReader(tokenizer, generation(len(tokenizer)), 0)
    model = TextModel(open_weights(tmp_path, "text-generation").eval(), reader, reader.generation, 0)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[len(tokenizer) :] *= 50.0
    for draft in model.draft(prompts(images=False)):
        assert max(draft.trace.tokens) < len(tokenizer)
        assert draft.trace.entropy.max() <= np.log(len(tokenizer)) + 1e-6


def test_an_answer_ends_at_a_stop_text_which_is_no_part_of_it(tmp_path: Path) -> None:
    free = open_model("llama", tmp_path / "free")
    first = free.draft(prompts(images=False))[0]
    words = first.text.split()
    stopped = open_model("llama", tmp_path / "stopped", stop=(words[1],)).draft(prompts(images=False))[0]
    assert stopped.trace.tokens == first.trace.tokens[:2]
    assert stopped.trace.ended
    assert stopped.answer == words[0]


def test_drafts_come_with_their_places(tmp_path: Path) -> None:
    model = open_model("llama", tmp_path)
    asked = prompts(images=False)
    found = {
        place: draft for places, drafts in model.drafts(asked, 2) for place, draft in zip(places, drafts, strict=True)
    }
    assert [found[place].trace.tokens for place in range(4)] == [draft.trace.tokens for draft in model.draft(asked)]


def test_a_prompt_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = open_model("llama", tmp_path, max_prompt_tokens=3)
    with pytest.raises(InputError, match="prompt 1: the prompt has 4 tokens, and this model takes 3"):
        next(model.drafts(prompts(images=False)))
    with pytest.raises(InputError, match="reads texts alone"):
        model.draft(prompts(images=True))
    with pytest.raises(InputError, match="has no image"):
        open_model("paligemma", tmp_path / "images").draft(prompts(images=False))


def test_a_conversation_is_put_into_the_chat_template() -> None:
    reader = TextReader(word_tokenizer(chat=True), generation(30, prompt="chat", template=None), 0)
    row = reader.read(Prompt((Message("system", "yes"), Message("user", "what"))))
    assert reader.tokenizer.decode(row["input_ids"]) == "system yes <end> user what <end> assistant"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"template": "no place"}, "template needs {prompt} once"),
        ({"template": None}, "template belongs to prompt plain"),
        ({"stop": ("",)}, "a stop text is empty"),
        ({"extract": "("}, "no regular expression"),
        ({"extract": "a"}, "needs a group"),
        ({"end_tokens": ()}, "end_tokens"),
    ],
)
def test_a_form_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        generation(30, **given)


def test_the_answer_in_what_was_written() -> None:
    assert generation(30).answer_of("  Paris \n") == "Paris"
    assert generation(30, extract=r"is (\w+)").answer_of("it is Paris, or so") == "Paris"
    assert generation(30, extract=r"is (\w+)").answer_of("Paris") == ""
    assert generation(30, stop=("\n", "."), extract="(.*)").answer_of("Paris. Or\nnot") == "Paris"


def test_scores_of_a_trace() -> None:
    trace = Trace((5, 6, 2), np.log([0.5, 0.25, 0.125]), np.array([1.0, 2.0, 3.0]), ended=True)
    rule = QuantileRule(
        quantiles=QUANTILES, mean=(0.0,) * 12, scale=(1.0,) * 12, coefficients=(0.0,) * 11 + (1.0,), intercept=0.0
    )
    found = {name: values[0] for name, values in scores_of([trace], rule).items()}
    assert found == pytest.approx(
        {
            "negative_predictive_entropy": -2.0,
            "sum_log_prob": np.log(0.5 * 0.25 * 0.125),
            "mean_log_prob": np.log(0.25),
            "min_log_prob": np.log(0.125),
            "first_max_softmax": 0.5,
            "quantile_rule": 3 / 4,  # sigmoid(log 3)
        }
    )
