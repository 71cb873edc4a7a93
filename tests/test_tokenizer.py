"""Tokenizers: training, files, round trips, streaming, and equality with transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcore.data import shakespeare
from llmcore.errors import DataError, DTypeError, TokenIndexError
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizer.training import TokenizerKind

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GPT2 = SHARED / "gpt2-tokenizer"
needs_gpt2 = pytest.mark.skipif(not GPT2.exists(), reason="the shared research data are absent")

TEXT = shakespeare()[:60_000]
MIXED = TEXT + 'Ça va? naïve Ünïcödé — 東京へ行く 🙂👩‍👩‍👧 ¼ ﬁ \t\r\n \'tis "so" ## ▁ <s>\n\n\n'
KINDS: list[TokenizerKind] = ["bpe", "wordpiece", "unigram", "char"]

UNICODE = "héllo  wörld\n\n\t 東京 🙂👩‍👩‍👧 don't 12345 \u200d \x00 ñ ﬁ "

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def make(kind: TokenizerKind, texts: Any = None, **options: Any) -> Tokenizer:
    size = None if kind == "char" else 600
    return Tokenizer.train([MIXED] if texts is None else texts, kind, size, **options)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(GPT2)


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable(kind: TokenizerKind, trained: dict[str, Tokenizer]) -> None:
    # The library's hash tables are seeded anew each time, so one process is enough to differ.
    for _ in range(3):
        assert make(kind).backend.to_str() == trained[kind].backend.to_str()


def test_files_and_texts_and_iterators_train_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT, newline="")
    for kind in KINDS:
        expected = make(kind, [TEXT]).backend.to_str()
        assert make(kind, file).backend.to_str() == expected
        assert make(kind, iter([TEXT])).backend.to_str() == expected


def test_vocabulary_has_the_size_asked_for(trained: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "wordpiece", "unigram"):
        assert trained[kind].vocab_size == 600


def test_usual_special_tokens(trained: dict[str, Tokenizer]) -> None:
    bpe, wordpiece, unigram, char = (trained[kind] for kind in KINDS)
    assert bpe.eos_id == bpe.bos_id == bpe.token_to_id("<|endoftext|>") == 0
    assert bpe.pad_id is bpe.mask_id is bpe.unk_id is None
    ids = [wordpiece.pad_id, wordpiece.unk_id, wordpiece.cls_id, wordpiece.sep_id]
    assert [*ids, wordpiece.mask_id] == [0, 1, 2, 3, 4]
    assert [unigram.pad_id, unigram.eos_id, unigram.unk_id] == [0, 1, 2]
    assert char.eos_id is char.unk_id is char.pad_id is None


def test_characters_are_numbered_as_nanogpt_does() -> None:
    tokenizer = Tokenizer.train([shakespeare()], kind="char")
    characters = sorted(set(shakespeare()))
    assert tokenizer.vocab_size == len(characters) == 65
    assert [tokenizer.id_to_token(index) for index in range(65)] == characters
    numbers = {character: index for index, character in enumerate(characters)}
    assert tokenizer.encode(TEXT) == [numbers[character] for character in TEXT]


def test_wordpiece_takes_uncased_text_like_bert() -> None:
    tokenizer = make("wordpiece", ["The the café cafe"], lowercase=True)
    assert tokenizer.encode("THE", add_special_tokens=False) == tokenizer.encode(
        "the", add_special_tokens=False
    )
    assert tokenizer.decode(tokenizer.encode("Café")) == "cafe"


def test_wordpiece_puts_cls_and_sep_around(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["wordpiece"]
    inside = tokenizer.encode("to be", add_special_tokens=False)
    assert tokenizer.encode("to be") == [tokenizer.cls_id, *inside, tokenizer.sep_id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], "bqe", 10), "kind must be .*did you mean 'bpe'"),
        ((["a"], "bpe"), "vocab_size is needed for kind='bpe'"),
        ((["a"], "bpe", 10), "vocab_size=10 is too small: .* make 257"),
        ((["abc"], "char", 2), "vocab_size=2 is too small: .* make 3"),
        ((["abcd"], "unigram", 3), "not large enough"),
        (([], "char"), "no text to train"),
        (([""], "bpe", 300), "no text to train"),
        (([""], "wordpiece", 300), "no text to train"),
        (("some text", "char"), "must be a list"),
        ((["a"], "unigram", 300, ["<pad>"]), "needs '<unk>' or"),
        (([Path("absent.txt")], "char"), "absent.txt: no such file"),
        (([__file__], "char"), "is the name of a file; give pathlib.Path"),
    ],
)
def test_training_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tokenizer.train(*arguments)


def test_training_from_an_invalid_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc\xff")
    for kind in KINDS:
        with pytest.raises(DataError, match=r"a\.txt: invalid UTF-8 at byte 3"):
            make(kind, file)


# -- text and back ----------------------------------------------------------------------------


@given(text=any_text)
@example(UNICODE)
@example("")
def test_bpe_keeps_any_text(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


@given(text=st.text(st.sampled_from(sorted(set(MIXED))), max_size=60))
@example("\n\n  a \t")
def test_characters_keep_any_text_of_theirs(text: str) -> None:
    assert len(CHAR.encode(text)) == len(text)
    assert CHAR.decode(CHAR.encode(text)) == text


@given(text=st.text(st.sampled_from(sorted(set(MIXED) - {"▁"})), max_size=60))
def test_unigram_keeps_text_but_for_one_leading_space(text: str) -> None:
    assert UNIGRAM.decode(UNIGRAM.encode(text)) == text.removeprefix(" ")


BPE, UNIGRAM, CHAR = make("bpe"), make("unigram"), make("char")


def test_batch_equals_one_by_one(trained: dict[str, Tokenizer]) -> None:
    texts = ["to be", "", "or\n not", TEXT[:500]]
    for tokenizer in trained.values():
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_in_the_text_are_one_id(trained: dict[str, Tokenizer]) -> None:
    bpe = trained["bpe"]
    ids = bpe.encode("a<|endoftext|>b")
    assert ids.count(0) == 1
    assert bpe.decode(ids) == "ab"
    assert bpe.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


@given(
    parts=st.lists(
        st.sampled_from(["<s>", "<s>x", "</s>", "a", "b", "<", "s", ">", "/", "\n", "é", "🙂"])
    )
)
def test_characters_encode_as_the_library_does(parts: list[str]) -> None:
    text = "".join(parts)
    assert SPECIAL.encode(text) == SPECIAL.backend.encode(text).ids


SPECIAL = Tokenizer.train(["ab<>s/x\n"], "char", special_tokens=["<s>", "<s>x", "</s>", "<unk>"])


def test_unknown_character_is_named_with_its_position() -> None:
    tokenizer = Tokenizer.train(["abc\n"], "char", special_tokens=["<eos>"])
    with pytest.raises(DataError, match=r"'é' \(U\+00E9, LATIN SMALL LETTER E .*position 2 .*5 of"):
        tokenizer.encode("abé")
    with pytest.raises(DataError, match=r"'🙂' .*position 7"):
        tokenizer.encode("a<eos>b🙂")
    with pytest.raises(DataError, match=r"\(U\+D800\) at position 0"):
        tokenizer.encode("\ud800")


def test_encode_refuses_what_is_not_text(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        with pytest.raises(DTypeError, match=r"encode takes text \(str\), got bytes"):
            tokenizer.encode(b"abc")  # type: ignore[arg-type]
        with pytest.raises(DataError):
            tokenizer.encode("a\udcff")


def test_decode_takes_any_integers_and_refuses_negative_ones() -> None:
    import numpy as np

    assert CHAR.decode(np.array(CHAR.encode("to be"), np.int32)) == "to be"
    assert BPE.decode([10**6]) == ""
    with pytest.raises(TokenIndexError, match="-1 is not a token id"):
        BPE.decode([5, -1])


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(
    kind: TokenizerKind, trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.backend.to_str() == tokenizer.backend.to_str()
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
        assert (loaded.eos_id, loaded.mask_id) == (tokenizer.eos_id, tokenizer.mask_id)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT)


def test_roles_come_from_the_config_before_the_usual_names(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["ab"], "char", special_tokens=["<end>", "</s>", "<pad>"])
    assert tokenizer.eos_id == tokenizer.token_to_id("</s>")
    tokenizer.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    written = json.loads(config.read_text())
    written |= {"eos_token": {"content": "<end>"}, "pad_token": None, "chat_template": "kept"}
    config.write_text(json.dumps(written))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_id == tokenizer.token_to_id("<end>")
    assert loaded.pad_id is None
    loaded.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert again["chat_template"] == "kept"
    assert Tokenizer.load(tmp_path / "again").eos_id == loaded.eos_id


def test_loading_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file or directory"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no tokenizer: expected tokenizer\.json, or vocab"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"tokenizer\.json: a git-lfs pointer"):
        Tokenizer.load(tmp_path)
    CHAR.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "gpt2").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "gpt2" / name).write_text("nonsense")
    with pytest.raises(DataError, match="not a byte-level BPE"):
        Tokenizer.load(tmp_path / "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_save(
    kind: TokenizerKind, trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    for theirs in (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    ):
        ids = tokenizer.encode(TEXT)
        assert theirs(TEXT)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        assert theirs.eos_token_id == tokenizer.eos_id
        assert theirs.pad_token_id == tokenizer.pad_id
        assert theirs.mask_token_id == tokenizer.mask_id


@pytest.mark.shared
@needs_gpt2
class TestGPT2:
    def test_vocabulary(self, gpt2: Tokenizer) -> None:
        assert gpt2.vocab_size == 50257
        assert gpt2.eos_id == gpt2.bos_id == 50256
        assert gpt2.encode("Hello world") == [15496, 995]
        assert Tokenizer.load(GPT2 / "vocab.json").encode("Hello world") == [15496, 995]

    @pytest.mark.parametrize("text", [UNICODE, MIXED, "", " ", "\n", "a<|endoftext|>b"])
    def test_round_trip_of_unicode(self, gpt2: Tokenizer, text: str) -> None:
        assert gpt2.decode(gpt2.encode(text), skip_special_tokens=False) == text

    def test_saved_as_one_file_it_is_the_same(self, gpt2: Tokenizer, tmp_path: Path) -> None:
        gpt2.save(tmp_path)
        loaded = Tokenizer.load(tmp_path)
        assert loaded.encode(MIXED) == gpt2.encode(MIXED)
        assert loaded.eos_id == 50256

    def test_equal_to_transformers(self, gpt2: Tokenizer) -> None:
        transformers = pytest.importorskip("transformers")
        theirs = transformers.GPT2Tokenizer.from_pretrained(GPT2)
        for text in (UNICODE, MIXED, "a<|endoftext|>b", "  x", "x  "):
            assert gpt2.encode(text) == theirs(text)["input_ids"]


# -- streaming --------------------------------------------------------------------------------


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = tokenizer.stream(**options)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


@settings(max_examples=200)
@given(text=any_text)
@example(UNICODE)
@example("\ufffd")
@example("a\ufffd\ufffdb")
def test_streamed_text_adds_up_to_decode(text: str) -> None:
    for tokenizer in STREAMED:
        ids = tokenizer.encode(text)
        for skip in (True, False):
            increments = stream(tokenizer, ids, skip_special_tokens=skip)
            assert "".join(increments) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300)
@given(data=st.data())
def test_any_ids_stream_to_what_decode_gives(data: st.DataObject) -> None:
    # What a model samples is not what an encoder gives: loose bytes, "##" first, stray specials.
    for tokenizer in STREAMED:
        number = st.integers(0, tokenizer.vocab_size - 1)
        ids = data.draw(st.lists(number, max_size=24))
        for skip in (True, False):
            increments = stream(tokenizer, ids, skip_special_tokens=skip)
            assert "".join(increments) == tokenizer.decode(ids, skip_special_tokens=skip)


STREAMED = [BPE, UNIGRAM, make("char", special_tokens=["<unk>"]), make("wordpiece")]


def test_half_a_character_is_held_back() -> None:
    ids = BPE.encode("a🙂é")
    assert len(ids) == 7
    assert stream(BPE, ids) == ["a", "", "", "", "🙂", "", "é", ""]
    assert stream(BPE, ids[:3]) == ["a", "", "", "\ufffd"]


def test_streaming_takes_constant_time_a_token() -> None:
    seen: list[int] = []
    decoder = BPE.stream()

    class Counting:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            seen.append(len(ids))
            return BPE.decode(ids, skip_special_tokens=skip_special_tokens)

    decoder._tokenizer = Counting()  # type: ignore[assignment]
    for index in BPE.encode(TEXT[:5000]):
        decoder.push(index)
    assert max(seen) <= 8
