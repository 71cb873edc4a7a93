"""Learning a vocabulary: the four kinds of tokenizer, built so that training is repeatable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmcore.data.documents import list_files, read_documents
from llmcore.errors import DataError, LlmcoreError, did_you_mean
from llmcore.tokenizer.characters import CHARACTER_PATTERN

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TokenizerKind = Literal["bpe", "wordpiece", "unigram", "char"]

#: What a text may be trained on: texts and files.
TrainingInputs = os.PathLike[str] | Iterable[str | os.PathLike[str]]

UNKNOWN_TOKENS = ("<unk>", "[UNK]")

#: The special tokens of each kind where none are named.
USUAL_SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "bpe": ("<|endoftext|>",),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "</s>", "<unk>"),
    "char": (),
}


def train(
    inputs: TrainingInputs,
    kind: TokenizerKind,
    vocab_size: int | None,
    special_tokens: Sequence[str] | None,
    lowercase: bool,
    text_field: str,
) -> Backend:
    """Train a tokenizer; see `llmcore.tokenizer.Tokenizer.train`."""
    if kind not in get_args(TokenizerKind):
        hint = did_you_mean(str(kind), get_args(TokenizerKind))
        raise DataError(f"kind must be bpe, wordpiece, unigram or char, got {kind!r}{hint}")
    if vocab_size is not None and not (isinstance(vocab_size, Integral) and vocab_size > 0):
        raise DataError(f"vocab_size must be a whole number above 0, got {vocab_size!r}")
    if lowercase and kind != "wordpiece":
        raise DataError(f"lowercase is for kind='wordpiece'; lower the text itself for {kind!r}")
    special = list(USUAL_SPECIAL_TOKENS[kind] if special_tokens is None else special_tokens)
    unknown = next((token for token in special if token in UNKNOWN_TOKENS), None)
    texts = _Texts(inputs, text_field)
    if kind == "char":
        backend = _train_characters(texts, special, unknown)
    elif vocab_size is None:
        raise DataError(f"vocab_size is needed for kind={kind!r}, for example 8000")
    elif kind == "bpe":
        backend = _train_bpe(texts, special, vocab_size)
    elif unknown is None:
        raise DataError(f"kind={kind!r} needs '<unk>' or '[UNK]' among its special tokens")
    elif kind == "wordpiece":
        backend = _train_wordpiece(texts, special, unknown, vocab_size, lowercase)
    else:
        backend = _train_unigram(texts, special, unknown, vocab_size)
    needed = backend.get_vocab_size()
    if vocab_size is not None and needed > vocab_size:
        raise DataError(
            f"vocab_size={vocab_size} is too small: the characters and special tokens alone "
            f"make {needed}"
        )
    return backend


class _Texts:
    """The training text, to be gone through any number of times."""

    def __init__(self, inputs: TrainingInputs, text_field: str) -> None:
        if isinstance(inputs, str) or not isinstance(inputs, (Iterable, os.PathLike)):
            raise DataError(
                "inputs must be a list: of texts (str) or of files (pathlib.Path); "
                f"got one {type(inputs).__name__}"
            )
        self._inputs = [inputs] if isinstance(inputs, os.PathLike) else inputs
        self._text_field = text_field

    def keep(self) -> None:
        """Make sure there can be a second pass."""
        if isinstance(self._inputs, Iterator):
            self._inputs = list(self._inputs)

    def __iter__(self) -> Iterator[str]:
        empty = True
        for item in self._inputs:
            for text in self._texts_of(item):
                empty = empty and not text
                yield text
        if empty:
            files = [str(item) for item in self._inputs if not isinstance(item, str)]
            where = f" in {', '.join(files)}" if files else ""
            raise DataError(f"there is no text{where} to train a tokenizer on")

    def _texts_of(self, item: str | os.PathLike[str]) -> Iterator[str]:
        if not isinstance(item, str):
            for file in list_files(item):
                for piece in read_documents(file, text_field=self._text_field):
                    yield piece.text
            return
        if len(item) < 256 and "\n" not in item and "\0" not in item and os.path.isfile(item):
            raise DataError(f"{item!r} is the name of a file; give pathlib.Path({item!r})")
        yield item


def _fit(backend: Backend, texts: _Texts, trainer: Any) -> None:
    try:
        backend.train_from_iterator(iter(texts), trainer)
    except LlmcoreError:
        raise
    except Exception as error:  # the library raises nothing more particular
        raise DataError(f"cannot train the tokenizer: {error}") from None


def _train_characters(texts: _Texts, special: list[str], unknown: str | None) -> Backend:
    """Every character a word of a word-level model, so that the file is one of the library's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    tokens = [*sorted(seen), *(token for token in special if token not in seen)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=unknown or UNKNOWN_TOKENS[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER_PATTERN), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    return backend


def _train_bpe(texts: _Texts, special: list[str], vocab_size: int) -> Backend:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _fit(backend, texts, trainer)
    return backend


def _train_wordpiece(
    texts: _Texts, special: list[str], unknown: str, vocab_size: int, lowercase: bool
) -> Backend:
    """Train WordPiece in two passes.

    The library numbers the "##" characters in the order of a hash table, which differs from run to
    run, and breaks ties between merges by these numbers. So a first pass, without merges, finds
    them, and the second is given them in order as if they were special.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    prefix = "##"
    texts.keep()

    def trained(first: Sequence[str], size: int) -> dict[str, int]:
        backend = Tokenizer(models.WordPiece(unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=list(first),
            continuing_subword_prefix=prefix,
            limit_alphabet=0x110000,  # every character: the default's cut breaks ties by hash
            show_progress=False,
        )
        _fit(backend, texts, trainer)
        return backend.get_vocab()

    inner = sorted(token for token in trained(special, 0) if token.startswith(prefix))
    vocab = trained([*special, *(token for token in inner if token not in special)], vocab_size)

    backend = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=prefix)
    backend.add_special_tokens(special)
    _add_bert_template(backend)
    return backend


def _add_bert_template(backend: Backend) -> None:
    """Put "[CLS]" and "[SEP]" around a text, as BERT reads it, if the vocabulary has them."""
    from tokenizers import processors

    marks = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if all(index is not None for _, index in marks):
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
        )


def _train_unigram(texts: _Texts, special: list[str], unknown: str, vocab_size: int) -> Backend:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def configured(model: Any) -> Backend:
        backend = Tokenizer(model)
        # A line break is a piece of its own, and the word after it does not get a "▁".
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="first"),
            ]
        )
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        return backend

    backend = configured(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special, unk_token=unknown, show_progress=False
    )
    _fit(backend, texts, trainer)
    scores = json.loads(backend.to_str())["model"]["vocab"]
    pieces = _settled([(token, score) for token, score in scores if token not in special])
    vocab = [*((token, 0.0) for token in special), *pieces]
    backend = configured(models.Unigram(vocab, unk_id=special.index(unknown)))
    backend.add_special_tokens(special)
    return backend


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the pieces, best first, without what differs between runs of the library's trainer.

    It adds up in the order of a hash table: scores differ in their last digits, and the characters
    that got no score of their own are given, in that order, the lowest one plus 0, 0.0001, 0.0002
    and so on. So these are dealt out again in the order of code points, and all are rounded.
    """
    step = 1e-4
    lowest = min(score for _, score in pieces)
    filler = [
        (token, score)
        for token, score in pieces
        if len(token) == 1
        and abs((score - lowest) / step - round((score - lowest) / step)) < 1e-3
        and score - lowest < step * len(pieces)
    ]
    dealt = zip(
        sorted(token for token, _ in filler),
        sorted((score for _, score in filler), reverse=True),
        strict=True,
    )
    settled = {**dict(pieces), **dict(dealt)}
    rounded = [(token, round(score, 3)) for token, score in settled.items()]
    return sorted(rounded, key=lambda piece: (-piece[1], piece[0]))
