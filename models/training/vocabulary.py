"""A WordPiece vocabulary of the training texts' own, for the text net. Same texts, same vocabulary."""

from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

PAD, UNKNOWN = "[PAD]", "[UNK]"


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """At most `vocabulary` pieces; accents and case are folded."""
    tokenizer = _empty_tokenizer({})
    words = [word for text in texts for word, _ in _words(tokenizer, text)]
    # The trainer numbers the characters inside words in the order of a hash map, another one each run, and merges in
    # the order of these numbers. Named beforehand as special tokens they have an order; the vocabulary is then taken
    # into a tokenizer in which they are special no more.
    inside = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=[PAD, UNKNOWN, *inside], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _empty_tokenizer(tokenizer.get_vocab())


def _empty_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    words: list[tuple[str, tuple[int, int]]] = tokenizer.pre_tokenizer.pre_tokenize_str(
        tokenizer.normalizer.normalize_str(text)
    )
    return words
