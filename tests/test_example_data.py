"""Data sets of examples: columns, splits, batches of similar length, and their files."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.data.example_files import Example, ExampleFiles, chat_prompt, kind_of_file, read_lines
from llmcore.data.example_tokenizing import ExampleEncoder, encode_source, tokenize_examples
from llmcore.data.examples import ExampleDataset, set_aside
from llmcore.data.sampling import ExampleSampler
from llmcore.errors import DataError, DTypeError, ShapeError
from llmcore.objectives import Classification, Seq2Seq
from llmcore.tokenizer import Tokenizer
from llmcore.training.feed import resolve_data

BPE = Tokenizer.train(["to be or not to be"], "bpe", 270, ["<pad>", "</s>"])
WORDPIECE = Tokenizer.train(["to be or not to be"], "wordpiece", 40)


def pairs(count, seed=0):
    """Pairs of random lengths whose first id is the number of the example."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, (count, 2))
    sources = [[index, *range(length - 1)] for index, (length, _) in enumerate(lengths)]
    return ExampleDataset.from_pairs(sources, [[index] * n for index, (_, n) in enumerate(lengths)])


def rows(dataset):
    sample = dataset.take(np.arange(len(dataset)))
    return [[np.asarray(row).tolist() for row in column] for column in sample.columns]


# -- the data set --------------------------------------------------------------------------------


def test_columns_come_out_as_they_went_in():
    sources, targets = [[1, 2], [3], [4, 5, 6]], [[7], [8, 9], [1]]
    data = ExampleDataset.from_pairs(sources, targets)
    assert rows(data) == [sources, targets]
    sample = data.take(np.array([2, 0]), epoch=3)
    assert [row.tolist() for row in sample.columns[0]] == [[4, 5, 6], [1, 2]]
    assert (sample.samples.tolist(), sample.epoch, sample.types) == ([2, 0], 3, None)
    batch = sample.batch(Seq2Seq(decoder_start_id=0))
    assert batch.enc_ids.tolist() == [[4, 5, 6], [1, 2, 0]]
    assert batch.targets.tolist() == [1, 7]


def test_labels_by_name_and_number_with_types():
    texts, types = [[1, 2, 3], [4, 5]], [[0, 0, 1], [0, 1]]
    data = ExampleDataset.from_labels(texts, ["b", "a"], types=types)
    assert (data.label_names, data.num_labels, data.labels.tolist()) == (("a", "b"), 2, [1, 0])
    batch = data.take(np.array([1, 0])).batch(Classification())
    assert batch.targets.tolist() == [0, 1]
    assert batch.types.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert data.longest == {"text": 3}
    numbered = ExampleDataset.from_labels(texts, np.array([4, 0]))
    assert (numbered.num_labels, numbered.label_names) == (5, ())


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (DataError, "as many sources as targets, got 1 and 2",
         lambda: ExampleDataset.from_pairs([[1]], [[1], [2]])),
        (DataError, "row 1 is empty", lambda: ExampleDataset.from_pairs([[1], []], [[1], [2]])),
        (DTypeError, "must hold integers", lambda: ExampleDataset.from_pairs([[1.5]], [[1]])),
        (ShapeError, "list of lists", lambda: ExampleDataset.from_pairs([1], [1])),
        (DataError, "as many texts as labels", lambda: ExampleDataset.from_labels([[1]], [0, 1])),
        (DataError, "all names or all whole numbers",
         lambda: ExampleDataset.from_labels([[1], [2]], ["a", 1])),
        (DataError, "whole number from 0 on, got -1",
         lambda: ExampleDataset.from_labels([[1]], [-1])),
        (DataError, "unknown label 'c'; the labels are 'a', 'b'",
         lambda: ExampleDataset.from_labels([[1]], ["c"], label_names=["a", "b"])),
        (ShapeError, "as many types as ids",
         lambda: ExampleDataset.from_labels([[1, 2]], [0], types=[[0]])),
        (DataError, "id 9 at position 1",
         lambda: ExampleDataset.from_pairs([[1, 9]], [[1]]).check_vocab(9)),
        (DataError, "too few to set 10% aside", lambda: pairs(1).split(0.1)),
        (DataError, "has no examples", lambda: next(ExampleDataset.from_pairs([], [])
                                                    .eval_batches(2))),
        (DataError, "batch_size must be at least 1", lambda: ExampleSampler(pairs(3), 0)),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_told(error, words, make):
    with pytest.raises(error, match=words):
        make()


@given(count=st.integers(0, 400), fraction=st.floats(0.01, 0.9))
def test_what_is_set_aside_is_the_share_asked_for(count, fraction):
    aside = set_aside(np.arange(count), fraction)
    assert abs(aside.sum() - count * fraction) <= 1 + 1e-9
    assert np.array_equal(aside[:50], set_aside(np.arange(min(count, 50)), fraction))


def test_a_split_keeps_the_balance_of_labels_in_any_order():
    for labels in ([0, 1] * 1000, [0] * 1000 + [1] * 1000, [0, 1, 1, 1] * 500):
        _, val = ExampleDataset.from_labels([[1]] * 2000, labels).split(0.1)
        share = val.labels.mean()
        expected = np.mean(labels)
        # 200 draws: five standard deviations.
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 200)


def test_the_parts_of_a_split_are_disjoint_and_everything():
    data = pairs(97)
    train, val = data.split(0.2)
    numbers = [row[0] for row in rows(train)[0] + rows(val)[0]]
    assert sorted(numbers) == list(range(97))
    assert len(val) in (19, 20)
    prints = {data.fingerprint, train.fingerprint, val.fingerprint}
    assert len(prints | {pairs(97, seed=1).fingerprint}) == 4
    assert pairs(97).fingerprint == data.fingerprint


# -- batches -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(count=st.integers(1, 300), batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_an_epoch_draws_every_example_once(count, batch, seed):
    sampler = ExampleSampler(pairs(count), batch, seed)
    for epoch in range(2):
        drawn = []
        while len(drawn) < count:
            sample = sampler.next_sample()
            assert sample.epoch == epoch
            assert [row[0] for row in sample.columns[0]] == sample.samples.tolist()
            drawn += sample.samples.tolist()
        assert sorted(drawn) == list(range(count))


def test_batches_hold_examples_of_similar_length_in_random_order():
    sampler = ExampleSampler(pairs(2000), 16, 1)
    real = filled = 0
    lengths = []
    for _ in range(125):
        for column in sampler.next_sample().columns:
            sizes = [len(row) for row in column]
            real, filled = real + sum(sizes), filled + max(sizes) * len(sizes)
            lengths.append(max(sizes))
    assert real / filled > 0.7  # the lengths of a pair are independent here
    assert real / filled > 1.3 * share_without_a_look_at_lengths()
    assert np.abs(np.corrcoef(lengths[2::2], lengths[:-2:2])[0, 1]) < 0.3


def share_without_a_look_at_lengths():
    """How much of a batch is not padding where examples come as they are."""
    lengths = pairs(2000).lengths.reshape(125, 16, 2)
    return lengths.sum() / (16 * lengths.max(axis=1).sum())


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resuming_continues_with_the_same_batches(stop):
    whole = ExampleSampler(pairs(50), 8, 3)
    expected = [whole.next_sample().samples.tolist() for _ in range(16)]
    assert len({tuple(samples) for samples in expected}) == 16
    before = ExampleSampler(pairs(50), 8, 3)
    for _ in range(stop):
        before.next_sample()
    after = ExampleSampler(pairs(50), 8, 3)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert [after.next_sample().samples.tolist() for _ in range(16 - stop)] == expected[stop:]
    for other in (ExampleSampler(pairs(50), 9, 3), ExampleSampler(pairs(51), 8, 3)):
        with pytest.raises(DataError, match="cannot resume"):
            other.load_state_dict(before.state_dict())


def test_the_order_never_changes_between_releases():
    sampler = ExampleSampler(pairs(40), 4, seed=1234)
    assert [sampler.next_sample().samples.tolist() for _ in range(3)] == GOLDEN


GOLDEN = [[20, 39, 24, 8], [28, 33, 14, 10], [3, 2, 1, 13]]


def test_evaluation_reads_every_example_once_and_the_same_every_time():
    data = pairs(31)
    batches = [sample.samples.tolist() for sample in data.eval_batches(4)]
    assert sorted(itertools.chain(*batches)) == list(range(31))
    assert [sample.samples.tolist() for sample in data.eval_batches(4)] == batches
    some = [sample.samples.tolist() for sample in data.eval_batches(4, max_batches=2)]
    assert sorted(itertools.chain(*some)) == [0, 3, 7, 11, 15, 19, 23, 27]


# -- files ---------------------------------------------------------------------------------------


def write(path, text):
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, target=None, **options):
    return [(e.texts, e.label) for e in ExampleFiles(path, target, **options)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parallel_files(tmp_path, suffix):
    german = write(tmp_path / f"a.de{suffix}", "\ufeffein Haus\r\nzwei\u2028Häuser\n")
    english = write(tmp_path / f"a.en{suffix}", "a house\ntwo houses")
    assert read(german, english, kind="pairs") == [
        (("ein Haus", "a house"), None),
        (("zwei\u2028Häuser", "two houses"), None),
    ]


@pytest.mark.parametrize(
    ("name", "text", "kind", "fields", "expected"),
    [
        ("a.tsv", "x\ty\nz\tw\n", "pairs", (), [(("x", "y"), None), (("z", "w"), None)]),
        ("a.tsv", "id\tde\ten\n1\tx\ty\n", "pairs", ("en", "de"), [(("y", "x"), None)]),
        ("a.tsv", "good one\t1\n", "labels", (), [(("good one",), 1)]),
        ("a.tsv", 'a "b"\tc\tyes\n', "labels", (), [(('a "b"', "c"), "yes")]),
        ("a.jsonl", '{"source": "x", "target": "y"}\n\n', "pairs", (), [(("x", "y"), None)]),
        ("a.jsonl", '{"prompt": "x", "completion": "y"}', "completions", (), [(("x", "y"), None)]),
        ("a.jsonl", '{"prompt": "x", "completion": "y"}', "pairs", (), [(("x", "y"), None)]),
        ("a.ndjson", '{"q": "x", "a": "y"}', "completions", ("q", "a"), [(("x", "y"), None)]),
        ("a.jsonl", '{"text": "x", "label": 3}', "labels", (), [(("x",), 3)]),
        ("a.jsonl.gz", '{"text": "x", "text_pair": "y", "label": "no"}', "labels", (),
         [(("x", "y"), "no")]),
    ],
)  # fmt: skip
def test_one_file(tmp_path, name, text, kind, fields, expected):
    assert read(write(tmp_path / name, text), kind=kind, fields=fields) == expected


def test_a_conversation_is_an_example_for_each_turn_of_the_assistant(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"}, {"role": "user", "content": "3+3?"},
        {"role": "assistant", "content": "6"},
    ]  # fmt: skip
    file = write(tmp_path / "chat.jsonl", json.dumps({"messages": turns}))
    (first, _), (second, _) = read(file, kind="completions")
    assert first == ("<|system|>\nBe brief.\n<|user|>\n2+2?\n<|assistant|>\n", "4")
    assert second == (f"{first[0]}4\n<|user|>\n3+3?\n<|assistant|>\n", "6")
    assert chat_prompt(turns[:2]) == first[0]


@pytest.mark.parametrize(
    ("name", "text", "kind", "words"),
    [
        ("a.tsv", "x\ty\nz\n", "pairs", r"a\.tsv:2: expected two texts with a tab between, got 1"),
        ("a.tsv", "x\n", "labels", r"a\.tsv:1: expected a text and a label"),
        ("a.tsv", "x\ty\n \tw\n", "pairs", r"a\.tsv:2: the source is empty"),
        ("a.tsv", "x\t\n", "pairs", r"a\.tsv:1: the target is empty"),
        ("a.tsv", "", "pairs", r"no examples in .*a\.tsv"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}', "labels",
         r"a\.jsonl:2: there is no field 'label'; the fields are 'text'"),
        ("a.jsonl", '{"from": "x"}', "pairs", "no field 'source'; the fields are 'from'"),
        ("a.jsonl", '{"source": "x", "target": 5}', "pairs",
         "field 'target' must be a string, got int"),
        ("a.jsonl", '{"text": "x", "label": 1.5}', "labels", "whole number or a name, got 1.5"),
        ("a.jsonl", '{"text": "x", "label": true}', "labels", "got True"),
        ("a.jsonl", "[1]", "pairs", "expected a JSON object, got list"),
        ("a.jsonl", '{"source"', "pairs", r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", '{"messages": "hello"}', "completions", "must be a list"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "completions", "no field 'content'"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "completions",
         'no message has the role "assistant"'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path, name, text, kind, words):
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / name, text), kind=kind)


def test_what_is_wrong_with_files_is_told(tmp_path):
    one = write(tmp_path / "a.de", "x\ny\nz\n")
    other = write(tmp_path / "a.en", "x\n")
    with pytest.raises(DataError, match=r"a\.de has 3 lines and .*a\.en has 1: line n of the one"):
        read(one, other, kind="pairs")
    with pytest.raises(DataError, match=r"a\.en has 1 lines and .*a\.de has 3"):
        read(other, one, kind="pairs")
    with pytest.raises(DataError, match=r"a\.fr: there is no such file"):
        read(one, tmp_path / "a.fr", kind="pairs")
    with pytest.raises(DataError, match="is a directory; name a file"):
        read(tmp_path, kind="pairs")
    with pytest.raises(DataError, match="labels are in the file of their texts"):
        read(one, other, kind="labels")
    with pytest.raises(DataError, match="have no fields"):
        read(one, other, kind="pairs", fields=("x", "y"))
    with pytest.raises(DataError, match="must name source,target, got x,y,z"):
        read(one, kind="pairs", fields=("x", "y", "z"))
    with pytest.raises(DataError, match=r"no field 'y'; the fields are 'x'"):
        read(write(tmp_path / "b.tsv", "x\n1\n"), kind="pairs", fields=("x", "y"))
    with pytest.raises(DataError, match="expected 2 columns as the first line has, got 1"):
        read(write(tmp_path / "b.tsv", "x\ty\n1\n"), kind="pairs", fields=("x", "y"))
    with pytest.raises(DataError, match=r"b\.txt:2: invalid UTF-8"):
        list(read_lines(write(tmp_path / "b.txt", b"a\n\xff\n")))
    packed = write(tmp_path / "c.gz", "some text" * 100)
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DataError, match="truncated or damaged"):
        list(read_lines(packed))
    packed.write_bytes(b"text")
    with pytest.raises(DataError, match="cannot be read: Not a gzipped file"):
        list(read_lines(packed))


def test_the_kind_is_told_by_the_file(tmp_path):
    for text, kind in (
        ('{"source": "a", "target": "b"}', "pairs"), ('{"text": "a", "label": 1}', "labels"),
        ('{"messages": []}', "completions"), ('{"text": "a"}', None), ("", None),
    ):  # fmt: skip
        assert kind_of_file(write(tmp_path / "a.jsonl", text), None) == kind
    assert kind_of_file(tmp_path / "a.txt", None) is None
    assert kind_of_file(tmp_path / "a.de", tmp_path / "a.en") == "pairs"


# -- ids -----------------------------------------------------------------------------------------


def encoded(tokenizer, kind, *texts, **options):
    examples = [Example(text, 0 if kind == "labels" else None, f"f:{i}")
                for i, text in enumerate(texts, 1)]  # fmt: skip
    encoder = ExampleEncoder(tokenizer, kind, **{"limit": None, **options})
    return encoder.encode(examples), encoder.cut


def test_pairs_end_with_the_end_of_text_and_are_cut_before_it():
    (sources, targets), cut = encoded(BPE, "pairs", ("to be", "not to"), limit=9)
    assert sources == encode_source(BPE, ["to be"])
    assert sources[0][-1] == targets[0][-1] == BPE.eos_id
    assert cut == 0
    whole = BPE.encode("or not to be or not")
    (sources, _), cut = encoded(BPE, "pairs", ("or not to be or not", "to"), limit=4)
    assert (sources[0], cut) == ([*whole[:3], BPE.eos_id], 1)


def test_completions_keep_the_end_of_a_long_prompt():
    prompt, completion = "or not to be or not", "to be"
    (prompts, completions), cut = encoded(BPE, "completions", (prompt, completion))
    assert (prompts[0], cut) == (BPE.encode(prompt), 0)
    assert completions[0] == [*BPE.encode(completion), BPE.eos_id]
    (prompts, completions), cut = encoded(BPE, "completions", (prompt, completion), limit=5)
    assert prompts[0] + completions[0] == (BPE.encode(prompt) + completions[0])[-5:]
    assert cut == 1
    (prompts, completions), _ = encoded(BPE, "completions", ("or", prompt), limit=3)
    assert (len(prompts[0]), completions[0]) == (1, BPE.encode(prompt)[:2])


def test_texts_of_labels_stand_in_their_tokenizers_frame():
    w = WORDPIECE
    (texts, types), _ = encoded(w, "labels", ("to be",), types=True)
    assert texts == [[w.cls_id, *w.encode("to be", add_special_tokens=False), w.sep_id]]
    assert types == [[0] * len(texts[0])]
    (texts, types), cut = encoded(w, "labels", ("to be", "or not"), types=True, limit=6)
    first, second = (w.encode(text, add_special_tokens=False) for text in ("to be", "or not"))
    kept = [w.cls_id, *first, w.sep_id, *second, w.sep_id]
    if len(kept) > 6:
        assert (len(texts[0]), cut) == (6, 1)
        assert texts[0].count(w.sep_id) == 2
    else:
        assert texts[0] == kept
    assert types[0] == [0] * (texts[0].index(w.sep_id) + 1) + [1] * (
        len(texts[0]) - texts[0].index(w.sep_id) - 1
    )
    assert w.backend.truncation is None  # the tokenizer is as it was


def test_tokenized_examples_are_mapped_again(tmp_path):
    lines = [f"{'to be ' * (i % 4)}or not {i}" for i in range(40)]
    file = write(tmp_path / "a.tsv", "".join(f"{line}\t{'ab'[i % 2]}\n" for i, line in
                                             enumerate(lines)))  # fmt: skip
    out = tmp_path / "out"
    files = ExampleFiles(file, kind="labels")
    result = tokenize_examples(files, BPE, out, val_fraction=0.25)
    assert result.examples == {"train": 30, "val": 10}
    train, val = resolve_data(out)
    assert (train.label_names, train.num_labels) == (("a", "b"), 2)
    assert train.tokenizer == BPE
    memory = ExampleDataset.from_labels(
        [BPE.encode(line) for line in lines], ["ab"[i % 2] for i in range(40)]
    )
    for stored, kept in zip((train, val), memory.split(0.25), strict=True):
        assert rows(stored)[0] == rows(kept)[0]
        assert stored.labels.tolist() == kept.labels.tolist()
    # Replaced as a whole; the validation file must not bring labels of its own.
    result = tokenize_examples(files, BPE, out, validation=files)
    assert result.examples == {"train": 40, "val": 40}
    other = write(tmp_path / "b.tsv", "what\tc\n")
    with pytest.raises(DataError, match=r"b\.tsv:1: unknown label 'c'; the labels are 'a', 'b'"):
        tokenize_examples(files, BPE, out, validation=ExampleFiles(other, kind="labels"))
    assert len(ExampleDataset.open(out, "val")) == 40  # as it was before the mistake
    (out / "train-text-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match="truncated"):
        ExampleDataset.open(out)


def test_a_text_that_cannot_be_encoded_is_named(tmp_path):
    tokenizer = Tokenizer.train(["abc"], "char")
    file = write(tmp_path / "a.tsv", "ab\tc\nab\tx\n")
    with pytest.raises(DataError, match=r"a\.tsv:2: character 'x' \(U\+0078"):
        tokenize_examples(ExampleFiles(file, kind="pairs"), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_the_pairs_of_multi30k(shared_data: Path, tmp_path):
    folder = shared_data / "multi30k"
    files = ExampleFiles(folder / "val.de.gz", folder / "val.en.gz", kind="pairs")
    tokenizer = Tokenizer.train(files.texts(), "bpe", 2000, ["<pad>", "</s>"])
    tokenize_examples(files, tokenizer, tmp_path / "out")
    data = ExampleDataset.open(tmp_path / "out")
    assert len(data) == 1014
    source, target = (tokenizer.decode(row[0]) for row in data.take(np.array([0])).columns)
    assert source == "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen"
    assert target == "A group of men are loading cotton onto a truck"
