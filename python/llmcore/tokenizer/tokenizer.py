"""Text to ids and back: one class over the `tokenizers` library, for training and for files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from llmcore.atomic import reason, write_atomically
from llmcore.errors import DataError, DTypeError, TokenIndexError
from llmcore.identify import what_it_is
from llmcore.tokenizer.characters import CharacterEncoder
from llmcore.tokenizer.stream import StreamDecoder
from llmcore.tokenizer.training import TokenizerKind, TrainingInputs, train
from llmcore.validation import as_path

if TYPE_CHECKING:
    # At run time imported where it is used: it takes longer to load than all of llmcore.
    from tokenizers import Tokenizer as Backend

#: The names transformers gives to the special tokens, with the tokens usually meant by each, most
#: telling first. Used where no `tokenizer_config.json` says.
USUAL_TOKENS: Mapping[str, tuple[str, ...]] = {
    "bos_token": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("<unk>", "[UNK]"),
    "sep_token": ("[SEP]",),
    "pad_token": ("<pad>", "[PAD]"),
    "cls_token": ("[CLS]",),
    "mask_token": ("<mask>", "[MASK]"),
}

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_FILE = "special_tokens_map.json"

#: Every file that `Tokenizer.load` may read.
TOKENIZER_FILES = (_TOKENIZER_FILE, "vocab.json", "merges.txt", _CONFIG_FILE, _SPECIAL_FILE)


class Tokenizer:
    """Text to ids and back.

    Example:
        >>> tokenizer = Tokenizer.train(["to be or not to be"], kind="char")
        >>> tokenizer.encode("not to")
        [3, 4, 6, 0, 6, 4]
        >>> tokenizer.decode([3, 4, 6, 0, 6, 4])
        'not to'
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any] | None = None) -> None:
        """Wrap a tokenizer of the `tokenizers` library.

        Args:
            backend: It; not copied.
            config: What `tokenizer_config.json` holds; it names the special tokens, and where it
                does not, the usual names are looked for in the vocabulary.
        """
        self.backend = backend
        self._config = dict(config or {})
        self._roles = _roles(backend, self._config)

    # -- making one ---------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        inputs: TrainingInputs,
        kind: TokenizerKind = "bpe",
        vocab_size: int | None = None,
        special_tokens: Sequence[str] | None = None,
        *,
        lowercase: bool = False,
        text_field: str = "text",
    ) -> Tokenizer:
        """Learn a vocabulary; the same input gives the same tokenizer.

        Kinds:

        * "bpe": byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's, Radford et al. 2019).
          Any text is encoded and comes back unchanged.
        * "wordpiece": WordPiece on words and punctuation, as BERT (Devlin et al. 2019). White space
          is not kept; words with unseen characters become "[UNK]".
        * "unigram": the unigram language model (Kudo 2018) on words marked with "▁", as T5 and
          SentencePiece; unseen characters become "<unk>". Scores are rounded to 0.001.
        * "char": each character an id, in the order of their code points (nanoGPT's); special
          tokens come after them.

        Args:
            inputs: Texts (`str`) and files (`pathlib.Path`; text, JSONL or Parquet), mixed freely.
                An iterator is read into memory if the kind takes more than one pass.
            kind: See above.
            vocab_size: Size of the vocabulary, special tokens included; less if the text does not
                give as many. Not needed for "char".
            special_tokens: Tokens that stand for themselves. None: the usual ones of the kind,
                "<|endoftext|>" for "bpe"; "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" for
                "wordpiece"; "<pad>", "</s>", "<unk>" for "unigram"; none for "char".
            lowercase: Fold upper case ("wordpiece": accents too, as BERT's uncased models).
            text_field: Key or column with the text, in JSONL and Parquet files.

        Raises:
            DataError: There is no text, a file cannot be read, or `vocab_size` is too small.
        """
        return cls(train(inputs, kind, vocab_size, special_tokens, lowercase, text_field))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from a directory or a file.

        Taken are `tokenizer.json`, or GPT-2's `vocab.json` with `merges.txt` (byte-level BPE);
        `tokenizer_config.json` and `special_tokens_map.json` beside them name the special tokens.

        Raises:
            DataError: Nothing is there, or it is not a tokenizer.
        """
        path = Path(as_path(path, "Tokenizer.load: path"))
        directory = path if path.is_dir() else path.parent
        single = path if path.is_file() and path.name != "vocab.json" else None
        file = single or directory / _TOKENIZER_FILE
        if single or (path.is_dir() and file.exists()):
            backend = _read_backend(file)
        elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
            backend = _read_gpt2(directory)
        elif not path.exists():
            raise DataError(f"{path}: no such file or directory")
        else:
            raise DataError(
                f"{directory} holds no tokenizer: expected {_TOKENIZER_FILE}, or vocab.json with "
                "merges.txt"
            )
        special = _read_json(directory / _SPECIAL_FILE)
        return cls(backend, {**special, **_read_json(directory / _CONFIG_FILE)})

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers reads too."""
        directory = Path(directory)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config, **self._roles}
        config.setdefault("clean_up_tokenization_spaces", False)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / _TOKENIZER_FILE, self.backend.to_str(pretty=True).encode())
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(directory / _CONFIG_FILE, text.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value, for worker processes."""
        return _unpickle, (self.backend.to_str(), self._config)

    def __eq__(self, other: object) -> bool:
        """Whether both give every text the same ids."""
        return isinstance(other, Tokenizer) and self.backend.to_str() == other.backend.to_str()

    __hash__ = None  # type: ignore[assignment]  # a backend may still be changed

    # -- text and ids ---------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: Any string. Special tokens written out in it become their ids.
            add_special_tokens: Add what the tokenizer puts around a text (BERT's "[CLS]" and
                "[SEP]", Llama's "<s>"); the tokenizers made by `train` put nothing.

        Raises:
            DataError: A character is not in a character vocabulary, naming it and its position,
                or the text holds half a surrogate pair.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the ids of each text; see `encode`."""
        if isinstance(texts, str):
            raise DTypeError("encode_batch takes a list of texts, got one str; encode takes one")
        for text in texts:
            if not isinstance(text, str):
                raise DTypeError(f"encode takes text (str), got {type(text).__name__}")
        if self._characters is not None:
            return [self._characters.encode(text) for text in texts]
        try:
            rows = self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except Exception as error:  # the library raises nothing more particular
            raise DataError(f"cannot encode the text: {error}") from None
        return [row.ids for row in rows]

    def decode(self, ids: ArrayLike, *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, [n] integers; ids without a token add nothing.

        Raises:
            TokenIndexError: An id is negative.
            DTypeError: An id is not a whole number.
        """
        numbers = ids if isinstance(ids, list) else np.asarray(ids).tolist()
        try:
            return self.backend.decode(numbers, skip_special_tokens=skip_special_tokens)
        except OverflowError:
            wrong = next(number for number in numbers if not 0 <= number < 2**32)
            raise TokenIndexError(f"decode: {wrong} is not a token id") from None
        except TypeError:
            raise DTypeError(f"decode takes a list of whole numbers, got {ids!r}") from None

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that is given one id at a time; see `StreamDecoder`."""
        return StreamDecoder(self, skip_special_tokens=skip_special_tokens)

    # -- the vocabulary -------------------------------------------------------------------------

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows an embedding table needs."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def token_to_id(self, token: str) -> int | None:
        """Return the id of `token`, or None if the vocabulary lacks it."""
        index: int | None = self.backend.token_to_id(token)
        return index

    def id_to_token(self, index: int) -> str | None:
        """Return the token of id `index`, in the vocabulary's spelling, or None."""
        token: str | None = self.backend.id_to_token(index)
        return token

    @property
    def bos_id(self) -> int | None:
        """Begins a text."""
        return self._role_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Ends a text."""
        return self._role_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Fills up rows."""
        return self._role_id("pad_token")

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary lacks."""
        return self._role_id("unk_token")

    @property
    def mask_id(self) -> int | None:
        """Hides a token that is to be predicted."""
        return self._role_id("mask_token")

    @property
    def cls_id(self) -> int | None:
        """Begins a text, in BERT."""
        return self._role_id("cls_token")

    @property
    def sep_id(self) -> int | None:
        """Ends a text, in BERT."""
        return self._role_id("sep_token")

    @property
    def special_ids(self) -> list[int]:
        """Ids of the tokens that stand for themselves, ascending."""
        added = self.backend.get_added_tokens_decoder()
        return sorted(index for index, token in added.items() if token.special)

    def _role_id(self, role: str) -> int | None:
        token = self._roles.get(role)
        return None if token is None else self.token_to_id(token)

    @cached_property
    def _characters(self) -> CharacterEncoder | None:
        return CharacterEncoder.of(json.loads(self.backend.to_str()))


def _unpickle(serialized: str, config: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    return Tokenizer(Backend.from_str(serialized), config)


def _roles(backend: Backend, config: Mapping[str, Any]) -> dict[str, str]:
    """Return which token plays which part: what `config` says, else the usual one."""
    roles = {}
    for role, usual in USUAL_TOKENS.items():
        if role in config:
            said = config[role]
            tokens = [said["content"] if isinstance(said, dict) else said]
        else:
            tokens = list(usual)
        for token in tokens:
            if isinstance(token, str) and backend.token_to_id(token) is not None:
                roles[role] = token
                break
    return roles


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; an empty one if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_backend(file: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        data = file.read_bytes()
        if not data.lstrip().startswith(b"{"):
            raise DataError(f"{file}: {what_it_is(file, data[:1024], len(data))}")
        return Backend.from_str(data.decode())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {reason(error)}") from None
    except DataError:
        raise
    except Exception as error:  # the library raises nothing more particular
        raise DataError(f"{file}: not a tokenizer file: {error}") from None


def _read_gpt2(directory: Path) -> Backend:
    """Read byte-level BPE from GPT-2's two files."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises nothing more particular
        raise DataError(f"{vocab} and {merges.name}: not a byte-level BPE: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    usual = dict.fromkeys(token for tokens in USUAL_TOKENS.values() for token in tokens)
    backend.add_special_tokens([token for token in usual if backend.token_to_id(token) is not None])
    return backend
