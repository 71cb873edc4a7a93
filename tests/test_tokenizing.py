"""Tokenizing files: formats, pieces, splits, workers, shards, and everything that can be wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore import atomic
from llmcore.data import documents
from llmcore.data.documents import cut_point, read_documents
from llmcore.data.tokens import BlockSampler, TokenDataset, shakespeare, tokenize_files
from llmcore.errors import DataError
from llmcore.tokenizer import Tokenizer

CHAR = Tokenizer.train([shakespeare()], kind="char")
BPE = Tokenizer.train([shakespeare()[:50_000]], "bpe", 400)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# -- reading documents ----------------------------------------------------------------------------


def texts(path: Path, **options: Any) -> list[str]:
    """The documents of a file, put together from their pieces."""
    whole: list[str] = []
    for piece in read_documents(path, **options):
        whole.append(piece.text) if piece.first else whole.__setitem__(-1, whole[-1] + piece.text)
    return whole


@given(text=st.text(st.sampled_from("ab \n東🙂"), max_size=60), limit=st.integers(2, 20))
def test_cutting_keeps_the_text_and_the_tokens(text: str, limit: int) -> None:
    if len(text) <= limit:
        return
    place = cut_point(text, limit)
    assert 0 < place <= limit
    if re.match(r"\S \S", text[place - 1 :]):
        for tokenizer in (BPE, UNIGRAM):
            parts = tokenizer.encode(text[:place]) + tokenizer.encode(text[place:])
            assert parts == tokenizer.encode(text)


UNIGRAM = Tokenizer.train(["ab ab ba 東 🙂\nb a ab"], "unigram", 20)


def test_long_documents_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(documents, "_READ_BYTES", 37)
    text = "\ufeff" + shakespeare()[:3000].replace("e", "é").replace("K", "🙂")
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    pieces = list(read_documents(file))
    assert len(pieces) > 20
    assert max(len(piece.text) for piece in pieces) <= 100
    assert "".join(piece.text for piece in pieces) == text[1:]
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.read for piece in pieces) == file.stat().st_size


@settings(max_examples=40)
@given(text=st.text(max_size=30).filter(lambda text: not text.startswith("\ufeff")))
def test_text_is_kept_to_the_byte_wherever_it_is_cut(text: str) -> None:
    raw = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.txt"
        file.write_bytes(raw)
        for border in range(len(raw) + 1):
            parts = texts(file, border=border)
            assert "".join(parts) == text
            assert len(parts) <= 1 + (0 < border < len(raw))


def test_line_ends_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_bytes(b"a\r\nb\rc\n")
    assert texts(file) == ["a\r\nb\rc\n"]


@pytest.mark.parametrize("offset", [0, 1, 36, 37, 38, 73, 74, 75])
def test_invalid_utf8_is_named_by_its_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr(documents, "_READ_BYTES", 37)
    file = tmp_path / "bad.txt"
    before = "é" * (offset // 2) + "a" * (offset % 2)
    file.write_bytes(before.encode() + b"\xff" + b"tail" * 20)
    with pytest.raises(DataError, match=rf"bad\.txt: invalid UTF-8 at byte {offset} \(0xff"):
        texts(file)
    assert texts(file, errors="replace") == [before + "\ufffd" + "tail" * 20]


def test_text_that_ends_within_a_character_is_invalid(tmp_path: Path) -> None:
    file = tmp_path / "cut.txt"
    file.write_bytes("ab🙂".encode()[:-1])
    with pytest.raises(DataError, match=r"invalid UTF-8 at byte 2 .*unexpected end of data"):
        texts(file)


def test_json_that_is_not_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "x"}]')
    with pytest.raises(DataError, match=r"a\.json: .*rename it to \.jsonl .* or to \.txt"):
        texts(tmp_path / "a.json")


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one\\ntwo", "id": 1}\n\n{"text": ""}\r\n{"text": "3"}')
    assert texts(file) == ["one\ntwo", "3"]
    assert [piece.place for piece in read_documents(file)] == [f"{file}:1", f"{file}:4"]
    file.write_text('{"body": "x"}')
    assert texts(file, text_field="body") == ["x"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a\.jsonl:2: not valid JSON"),
        (b'["x"]', r"a\.jsonl:2: expected a JSON object, got list"),
        (b'{"body": "x", "id": 1}', r"a\.jsonl:2: .*no field 'text'; the fields are 'body', 'id'"),
        (b"{}", r"a\.jsonl:2: .*the fields are none"),
        (b'{"text": 3}', r"a\.jsonl:2: field 'text' must be a string, got int"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2: field 'text' holds half a surrogate pair"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: invalid UTF-8 at byte 25"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "ok"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        texts(file)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    rows = ["one", None, "", "zwei 🙂", "three"] * 200
    parquet.write_table(pyarrow.table({"text": rows, "n": range(1000)}), file, row_group_size=77)
    assert texts(file) == [row for row in rows if row]
    with pytest.raises(DataError, match=r"a\.parquet: there is no column 'body'; .* 'text', 'n'"):
        texts(file, text_field="body")
    with pytest.raises(DataError, match=r"row 0: column 'n' must hold strings, got int"):
        texts(file, text_field="n")
    assert sum(piece.read for piece in read_documents(file)) <= file.stat().st_size
    file.write_text("not parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        texts(file)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(documents.importlib, "import_module", absent)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"needs pyarrow; install .* extra `parquet`"):
        texts(tmp_path / "a.parquet")


# -- tokenizing files -----------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """A text, and 300 short documents."""
    text, lines = tmp_path / "plays.txt", tmp_path / "lines.jsonl"
    text.write_text(shakespeare()[:40_000])
    found = shakespeare()[40_000:70_000].split("\n\n")[:300]
    lines.write_text("".join(json.dumps({"text": line}) + "\n" for line in found))
    return [text, lines]


def test_a_file_becomes_its_ids(tmp_path: Path, corpus: list[Path]) -> None:
    result = tokenize_files(corpus[0], CHAR, tmp_path / "out")
    data = TokenDataset.open(tmp_path / "out")
    expected = CHAR.encode(corpus[0].read_text())
    assert data.read(0, len(data)).tolist() == expected
    assert result.tokens == {"train": len(expected)}
    assert (result.documents, result.bytes) == (1, 40_000)
    assert data.tokenizer is not None
    assert data.tokenizer.encode("to be") == CHAR.encode("to be")
    assert (tmp_path / "out" / "train-00000.bin").stat().st_size == 2 * len(expected)
    assert sorted(contents(tmp_path / "out")) == [
        "index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train-00000.bin",
        "train-documents.bin",
    ]


def test_documents_end_with_the_end_of_text_token(tmp_path: Path, corpus: list[Path]) -> None:
    result = tokenize_files(corpus, BPE, tmp_path / "out", shard_tokens=1000)
    data = TokenDataset.open(tmp_path / "out")
    ids = data.read(0, len(data))
    expected = [text for file in corpus for text in texts(file)]
    assert result.documents == len(data.document_starts) == len(expected) > 100
    bounds = [*data.document_starts.tolist(), len(data)]
    for text, start, stop in zip(expected, bounds, bounds[1:], strict=False):
        assert ids[start:stop].tolist() == [*BPE.encode(text), BPE.eos_id]
    assert len(list((tmp_path / "out").glob("train-0*.bin"))) == -(-len(data) // 1000)
    tokenize_files(corpus, BPE, tmp_path / "bare", end_of_text=False)
    assert len(TokenDataset.open(tmp_path / "bare")) == len(data) - len(expected)


@pytest.mark.parametrize("split_by", ["order", "hash"])
def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, corpus: list[Path], monkeypatch: pytest.MonkeyPatch, split_by: Any
) -> None:
    monkeypatch.setattr("llmcore.data.tokenizing.PIECE_CHARACTERS", 5_000)
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 3_000)
    written = []
    for workers in (1, 2):
        calls: list[tuple[int, int, int]] = []
        result = tokenize_files(
            corpus,
            BPE,
            tmp_path / str(workers),
            workers=workers,
            val_fraction=0.2,
            split_by=split_by,
            shard_tokens=7_000,
            progress=lambda *done, calls=calls: calls.append(done),  # type: ignore[misc]
        )
        assert len(calls) > 5
        assert calls == sorted(calls)
        size = sum(file.stat().st_size for file in corpus)
        assert calls[-1] == (result.documents, size, sum(result.tokens.values()))
        written.append(contents(tmp_path / str(workers)))
    assert written[0] == written[1]
    assert sorted(name for name in written[0] if name.startswith("val"))


def test_splitting_in_order_is_nanogpts(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text(shakespeare())
    result = tokenize_files(file, CHAR, tmp_path / "out", val_fraction=0.1)
    assert result.tokens == {"train": 1_003_854, "val": 111_540}
    ids = CHAR.encode(shakespeare())
    for split, expected in (("train", ids[:1_003_854]), ("val", ids[1_003_854:])):
        data = TokenDataset.open(tmp_path / "out", split)
        np.testing.assert_array_equal(data.read(0, len(data)), expected)


def test_a_text_cut_for_validation_ends_only_once(tmp_path: Path, corpus: list[Path]) -> None:
    result = tokenize_files(corpus[0], BPE, tmp_path / "out", val_fraction=0.5)
    train, val = (TokenDataset.open(tmp_path / "out", split) for split in ("train", "val"))
    ids = [data.read(0, len(data)) for data in (train, val)]
    assert [(part == BPE.eos_id).sum() for part in ids] == [0, 1]
    assert BPE.decode(np.concatenate(ids)) == corpus[0].read_text()
    assert result.documents == 1
    assert train.document_starts.tolist() == val.document_starts.tolist() == [0]


def test_splitting_in_order_keeps_documents_whole(tmp_path: Path, corpus: list[Path]) -> None:
    tokenize_files(corpus[1], BPE, tmp_path / "out", val_fraction=0.25)
    expected = texts(corpus[1])
    found = []
    for split in ("train", "val"):
        data = TokenDataset.open(tmp_path / "out", split)
        ids = data.read(0, len(data))
        found += [BPE.decode(part) for part in np.split(ids, data.document_starts[1:])]
    assert found == expected
    share = len(data) / (len(data) + len(TokenDataset.open(tmp_path / "out")))
    assert share == pytest.approx(0.25, abs=0.03)


def test_splitting_by_hash_puts_equal_documents_on_one_side(
    tmp_path: Path, corpus: list[Path]
) -> None:
    once, twice = corpus[1], tmp_path / "twice.jsonl"
    twice.write_text(once.read_text() * 2)
    counts = []
    for file in (once, twice):
        result = tokenize_files(file, BPE, tmp_path / file.stem, val_fraction=0.3, split_by="hash")
        counts.append(result.tokens)
    assert {split: 2 * count for split, count in counts[0].items()} == counts[1]
    documents_in_val = len(TokenDataset.open(tmp_path / "twice", "val").document_starts)
    assert documents_in_val / result.documents == pytest.approx(0.3, abs=0.1)


def test_ids_above_16_bits_are_written_in_32(tmp_path: Path) -> None:
    characters = [chr(0x10000 + index) for index in range(65_600)]
    tokenizer = Tokenizer.train(["".join(characters)], "char")
    file = tmp_path / "a.txt"
    file.write_text("".join(characters[-100:]))
    tokenize_files(file, tokenizer, tmp_path / "out")
    data = TokenDataset.open(tmp_path / "out")
    assert data.read(0, 100).tolist() == list(range(65_500, 65_600))
    assert (tmp_path / "out" / "train-00000.bin").stat().st_size == 400


def test_sampling_from_shards_equals_sampling_from_memory(
    tmp_path: Path, corpus: list[Path]
) -> None:
    tokenize_files(corpus[0], CHAR, tmp_path / "out", shard_tokens=999)
    opened = TokenDataset.open(tmp_path / "out")
    memory = TokenDataset.from_ids(CHAR.encode(corpus[0].read_text()))
    for mode in ("random", "epoch"):
        batches = [
            BlockSampler(data, 64, 12, seed=5, mode=mode).next_batch()  # type: ignore[arg-type]
            for data in (opened, memory)
        ]
        np.testing.assert_array_equal(*batches)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unknown_character_names_the_file(tmp_path: Path, workers: int) -> None:
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    good.write_text('{"text": "fine"}\n')
    bad.write_text('{"text": "fine"}\n{"text": "caf\\u00e9"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: character 'é' .* at position 3"):
        tokenize_files([good, bad], CHAR, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_tokenizing_refuses(tmp_path: Path) -> None:
    file, empty = tmp_path / "a.txt", tmp_path / "empty.txt"
    file.write_text("to be")
    empty.write_text("")
    out = tmp_path / "out"
    for arguments, options, message in [
        ((file, CHAR), {"workers": 0}, "workers must be at least 1, got 0"),
        ((file, CHAR), {"val_fraction": 1.0}, "val_fraction must be from 0 to below 1"),
        ((file, CHAR), {"split_by": "size"}, "split_by must be 'order' or 'hash', got 'size'"),
        ((file, CHAR), {"shard_tokens": 0}, "shard_tokens must be at least 1"),
        ((file, CHAR), {"end_of_text": True}, "needs a tokenizer with an end-of-text token"),
        ((file, CHAR), {"val_fraction": 0.5, "split_by": "hash"}, "the split '.*' would be empty"),
        (([], CHAR), {}, "no input files"),
        ((tmp_path / "b.txt", CHAR), {}, r"b\.txt: no such file"),
        ((tmp_path, CHAR), {}, "is a directory; name the files in it"),
        ((empty, CHAR), {}, r"there is no text in .*empty\.txt"),
    ]:
        with pytest.raises(DataError, match=message):
            tokenize_files(*arguments, out, **options)  # type: ignore[arg-type]
        assert not out.exists()


def test_a_data_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("to be or not to be")
    tokenize_files(file, CHAR, out, shard_tokens=5, val_fraction=0.5)
    (out / "notes.md").write_text("mine")
    before = contents(out)
    with pytest.raises(DataError, match="holds a data set already"):
        tokenize_files(file, CHAR, out)
    assert contents(out) == before
    tokenize_files(file, CHAR, out, overwrite=True)
    after = contents(out)
    assert after["notes.md"] == b"mine"
    assert [name for name in after if name.endswith(".bin")] == [
        "train-00000.bin",
        "train-documents.bin",
    ]
    assert len(TokenDataset.open(out)) == 18


@pytest.mark.parametrize("fail_at", range(5))
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("to be or not to be")
    tokenize_files(file, CHAR, out)
    before = contents(out)
    file.write_text("something else")
    syncs = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs > fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="out: cannot be written: No space left on device"):
        tokenize_files(file, CHAR, out, overwrite=True)
    assert contents(out) == before


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be")
    left = tmp_path / "out" / ".writing-1"
    left.mkdir(parents=True)
    (left / "train-00000.bin").write_bytes(b"half")
    tokenize_files(tmp_path / "a.txt", CHAR, tmp_path / "out")
    assert not left.exists()
    assert len(TokenDataset.open(tmp_path / "out")) == 5


# -- opening shards -------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    file = tmp_path / "a.txt"
    file.write_text("to be or not to be")
    tokenize_files(file, CHAR, tmp_path / "out", shard_tokens=10)
    return tmp_path / "out" / "train-00001.bin"


def test_a_truncated_shard_is_named(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"train-00001\.bin: truncated: expected 16 bytes, got 13"):
        TokenDataset.open(shard.parent)


def test_a_corrupted_shard_is_named(shard: Path) -> None:
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"train-00001\.bin: corrupted: its checksum differs"):
        TokenDataset.open(shard.parent)
    assert len(TokenDataset.open(shard.parent, verify=False)) == 18


def test_a_missing_shard_is_named(shard: Path) -> None:
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00001\.bin: cannot be read: No such file"):
        TokenDataset.open(shard.parent)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the index of a tokenized data set"),
        ('{"format": "other"}', "not the index of a tokenized data set"),
        ('{"format": "llmcore-shards", "version": 99}', "format version 99 is not 1"),
        ('{"format": "llmcore-shards", "version": 1}', "incomplete"),
    ],
)
def test_a_bad_index_is_named(shard: Path, index: str, message: str) -> None:
    (shard.parent / "index.json").write_text(index)
    with pytest.raises(DataError, match=rf"index\.json.* {message}"):
        TokenDataset.open(shard.parent)


def test_opening_what_is_not_there(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenized data set"):
        TokenDataset.open(tmp_path / "absent")
    with pytest.raises(DataError, match="there is no split 'val'; it has 'train'"):
        TokenDataset.open(shard.parent, "val")


def test_a_data_set_tells_its_splits(tmp_path: Path, shard: Path) -> None:
    assert TokenDataset.splits(shard.parent) == ("train",)
    tokenize_files(tmp_path / "a.txt", CHAR, tmp_path / "two", val_fraction=0.5)
    assert TokenDataset.splits(tmp_path / "two") == ("train", "val")


def test_opened_data_know_their_vocabulary(shard: Path) -> None:
    data = TokenDataset.open(shard.parent)
    data.check_vocab(65)
    with pytest.raises(DataError, match="outside the vocabulary of 20"):
        data.check_vocab(20)


# -- writing files --------------------------------------------------------------------------------


def test_writing_atomically_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    atomic.write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        atomic.write_atomically(path, b"new")
    assert contents(tmp_path) == {"a.json": b"old"}
