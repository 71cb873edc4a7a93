"""The commands that use a trained model: they say what Python says, and mistakes are one line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from command import child, fails, run
from llmcore import GenerationConfig, LoraConfig, ModelConfig, Tokenizer, Transformer
from llmcore.tensor import write
from llmcore.uses.explain import explain, token_texts
from llmcore.uses.translate import translations

SENTENCES = ["a dog runs in the snow", "two men look at a dog", "the snow is white"] * 20
SIZES = {"hidden_size": 16, "num_heads": 2, "max_positions": 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory with a model of each kind, each with weights that are not all alike."""
    folder = tmp_path_factory.mktemp("models")
    words = Tokenizer.train(SENTENCES, kind="wordpiece", vocab_size=120)
    pieces = Tokenizer.train(
        SENTENCES, kind="bpe", vocab_size=300, special_tokens=["<pad>", "</s>", "de_DE"]
    )
    for name, tokenizer, fields in (
        ("encoder", words, {"num_encoder_layers": 2}),
        ("classifier", words, {"num_encoder_layers": 1, "num_labels": 2,
                               "label_names": ["calm", "wild"], "pooler": True}),
        ("decoder", pieces, {"num_decoder_layers": 2}),
        ("leftwards", pieces, {"num_decoder_layers": 1, "right_to_left": True}),
        ("both", pieces, {"num_encoder_layers": 1, "num_decoder_layers": 2,
                          "decoder_start_id": 0, "eos_id": 1}),
    ):  # fmt: skip
        config = ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES, **fields)
        model = Transformer(config, seed=3)
        generator = np.random.default_rng(1)
        for tensor in model.parameters().values():
            write(tensor, tensor.numpy() + generator.normal(0, 0.3, tensor.shape))
        model.tokenizer = tokenizer
        model.save_pretrained(folder / name)
    return folder


def printed(capsys, *words):
    status, out, err = run(capsys, *words)
    assert status == 0, err
    return out


# ---------------------------------------------------------------------------- what they say


def test_translate_keeps_lines_in_order_and_empty_ones(capsys, models, tmp_path):
    model = Transformer.from_pretrained(models / "both")
    config = GenerationConfig(num_beams=3, max_new_tokens=6)
    expected = [" ".join(text.split()) for text in model.translate(SENTENCES[:3], config)]
    assert len(set(expected)) > 1
    file, out = tmp_path / "in.txt", tmp_path / "out.txt"
    file.write_text("\n".join([SENTENCES[0], "", *SENTENCES[1:3]]) + "\n")
    words = ["translate", models / "both", "--num-beams", 3, "--max-new-tokens", 6]
    lines = printed(capsys, *words, "--input", file, "--batch-size", 2).split("\n")
    assert lines == [expected[0], "", *expected[1:], ""]
    assert printed(capsys, *words, "--input", file, "--output", out) == ""
    assert out.read_text().split("\n") == lines
    texts = [word for text in SENTENCES[:2] for word in ("--text", text)]
    assert printed(capsys, *words, *texts).splitlines() == expected[:2]


def test_translate_reads_standard_input(models):
    import subprocess
    import sys

    command = [sys.executable, "-m", "llmcore.cli", "translate", models / "both",
               "--max-new-tokens", "4"]  # fmt: skip
    done = subprocess.run(command, input=b"a dog\nthe snow\n", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 2
    done = subprocess.run(command, input=b"a dog\n\xff\n", capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"2: invalid UTF-8" in done.stderr


def test_n_best_and_length_penalty_and_target_language(capsys, models):
    model = Transformer.from_pretrained(models / "both")
    config = GenerationConfig(
        num_beams=4, num_return_sequences=3, max_new_tokens=6, length_penalty=2.0
    )
    [best] = translations(model, SENTENCES[:1], config, "say: ", "de_DE")
    assert best.ids[0] == model.tokenizer.token_to_id("de_DE")
    out = printed(capsys, "translate", models / "both", "--text", SENTENCES[0], "--n-best", 3,
                  "--length-penalty", 2, "--max-new-tokens", 6, "--source-prefix", "say: ",
                  "--target-language", "de_DE")  # fmt: skip
    rows = [line.split(" ||| ") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["0"] * 3
    scores = [one.score for one in [best, *best.alternatives]]
    assert [float(row[-1]) for row in rows] == [round(score, 4) for score in scores]


def test_fill_mask(capsys, models):
    text = "a [MASK] runs in the [MASK]"
    model = Transformer.from_pretrained(models / "encoder")
    words = ["fill-mask", models / "encoder", "--text", text, "--top-k", 3]
    facts = json.loads(printed(capsys, *words, "--json"))
    expected = [[vars(fill) for fill in mask] for mask in model.fill_mask(text, 3)]
    assert facts == {"text": text, "masks": expected}
    out = printed(capsys, *words)
    assert out.count("mask ") == 2
    assert f"{expected[1][2]['score']:.4f}  {expected[1][2]['token']}" in out


@pytest.mark.cpu("bits that only it promises")
def test_classify_and_embed(capsys, models, tmp_path):
    model = Transformer.from_pretrained(models / "classifier")
    file = tmp_path / "in.txt"
    file.write_text("\n".join(SENTENCES[:5]))
    words = ["classify", models / "classifier", "--input", file, "--batch-size", 2]
    found = [json.loads(line) for line in printed(capsys, *words, "--json").splitlines()]
    for facts, text, expected in zip(
        found, SENTENCES[:5], model.classify(SENTENCES[:5]), strict=True
    ):
        assert facts == {"text": text, **vars(expected)}
    assert printed(capsys, *words).startswith(f"{found[0]['label']}\t{found[0]['score']:.4f}\t")
    out = tmp_path / "vectors.npy"
    printed(capsys, "embed", models / "classifier", "--input", file, "--out", out, "--pooling",
            "pooler", "--normalize", "--batch-size", 2)  # fmt: skip
    expected = model.embed(SENTENCES[:5], pooling="pooler", normalize=True)
    assert np.array_equal(np.load(out), expected)


@pytest.mark.cpu("bits that only it promises")
def test_score(capsys, models, tmp_path):
    model = Transformer.from_pretrained(models / "decoder")
    out = printed(capsys, "score", models / "decoder", "--text", SENTENCES[0])
    [expected] = model.score(SENTENCES[0])
    assert out == f"{expected.perplexity:.3f}\t{expected.score:.3f}\t{SENTENCES[0]}\n"
    texts, sources = tmp_path / "texts", tmp_path / "sources"
    texts.write_text("\n".join(SENTENCES[:3]))
    sources.write_text("\n".join(SENTENCES[3:6]))
    words = ["score", models / "both", "--input", texts, "--sources", sources, "--batch-size", 2]
    found = [json.loads(line) for line in printed(capsys, *words, "--json").splitlines()]
    both = Transformer.from_pretrained(models / "both")
    expected = both.score(SENTENCES[:3], SENTENCES[3:6])
    assert [facts["logprobs"] for facts in found] == [one.logprobs for one in expected]
    sources.write_text(SENTENCES[0])
    assert "fewer lines" in fails(capsys, 1, *words)
    sources.write_text("a\n" * 4)
    assert "more lines" in fails(capsys, 1, *words)


def test_generate_by_beams_beside_an_encoder_and_leftwards(capsys, models):
    model = Transformer.from_pretrained(models / "decoder")
    config = GenerationConfig(
        max_new_tokens=5, num_beams=3, num_return_sequences=2, no_repeat_ngram_size=2
    )
    [best] = model.generate(["a dog"], config)
    out = printed(capsys, "generate", models / "decoder", "--prompt", "a dog", "--num-beams", 3,
                  "--n-best", 2, "--no-repeat-ngram-size", 2, "--max-new-tokens", 5)  # fmt: skip
    assert f"1. score {best.score:.4f}\na dog{best.text}" in out
    assert f"2. score {best.alternatives[0].score:.4f}\na dog{best.alternatives[0].text}" in out
    short = ["--max-new-tokens", 5, "--temperature", 0, "--prompt", "a dog"]
    leftwards = Transformer.from_pretrained(models / "leftwards")
    [result] = leftwards.generate(["a dog"], GenerationConfig(max_new_tokens=5))
    out = printed(capsys, "generate", models / "leftwards", *short)
    assert out == f"{result.text}a dog\n"
    both = Transformer.from_pretrained(models / "both")
    [result] = both.generate(["a dog"], GenerationConfig(max_new_tokens=5))
    assert printed(capsys, "generate", models / "both", *short) == f"a dog\n{result.text}\n"


# ---------------------------------------------------------------------------- attention


def test_explain_a_decoder_and_its_continuation(models):
    model = Transformer.from_pretrained(models / "decoder")
    ids = model.tokenizer.encode("a dog runs")
    [result] = model.generate([ids], GenerationConfig(max_new_tokens=4))
    whole = [*ids, *result.ids]
    found = explain(model, "a dog runs", layers=[1], heads=[0, 1], max_new_tokens=4, top_k=2)
    [decoder] = found.maps
    assert (decoder.kind, decoder.layers, decoder.heads) == ("decoder", (1,), (0, 1))
    assert np.array_equal(decoder.weights, model.attention_maps([whole], [1], [0, 1])[0])
    assert "".join(decoder.queries).startswith("a dog runs")
    # A greedy continuation is what was likeliest.
    spelled = token_texts(model.tokenizer, whole)
    last = len(ids) - 1
    assert [found.next_tokens[last + n][0][0] for n in range(4)] == spelled[len(ids) :]
    assert all(len(entry) == 2 for entry in found.next_tokens)
    alone = explain(model, "a dog runs").maps[0]
    assert len(alone.queries) == len(ids)
    long = explain(model, ids * 4, max_new_tokens=30)
    assert len(long.next_tokens) == model.config.max_positions


def test_explain_the_other_kinds(models):
    encoder = Transformer.from_pretrained(models / "encoder")
    found = explain(encoder, "a dog runs")
    assert [one.kind for one in found.maps] == ["encoder"]
    assert found.maps[0].queries == ("[CLS]", " a", " dog", " runs", " [SEP]")
    assert found.next_tokens is None

    both = Transformer.from_pretrained(models / "both")
    found = explain(both, "a dog", "the snow")
    assert [one.kind for one in found.maps] == ["encoder", "decoder", "cross"]
    _, decoder, cross = found.maps
    assert decoder.queries[0] == "<pad>"
    assert "".join(decoder.queries[1:]) == "the snow"
    assert (cross.keys[-1], cross.queries) == ("</s>", decoder.queries)
    said = explain(both, "a dog", max_new_tokens=3)
    [result] = both.generate(["a dog"], GenerationConfig(max_new_tokens=3))
    kept = [token for token in result.ids if token != both.config.eos_id]
    assert said.maps[1].queries[1:] == tuple(token_texts(both.tokenizer, [0, *kept])[1:])

    leftwards = Transformer.from_pretrained(models / "leftwards")
    read = explain(leftwards, "a dog runs").maps[0].queries
    assert read[0] in "a dog runs"[-len(read[0]) :]


def test_half_characters_are_spelled_as_the_vocabulary_does():
    tokenizer = Tokenizer.train(["é"], kind="bpe", vocab_size=257)
    assert token_texts(tokenizer, tokenizer.encode("aé")) == ["a", "Ã", "©"]
    assert token_texts(None, [3, 4]) == ["3", "4"]


def test_attend_writes_a_page_and_heat_maps(capsys, models, tmp_path):
    page = tmp_path / "a.html"
    out = printed(capsys, "attend", "a dog", "--model", models / "both", "--target", "the snow",
                  "--out", page, "--heads", "1")  # fmt: skip
    assert "encoder and decoder and cross" in out
    text = page.read_text()
    data = json.loads(re.search(r"<script[^>]*json[^>]*>(.*?)</script>", text, re.DOTALL)[1])
    assert [one["kind"] for one in data["maps"]] == ["encoder", "decoder", "cross"]
    assert data["maps"][0]["heads"] == [1]
    assert len(data["next"]) == len(data["maps"][1]["queries"])
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    printed(capsys, "attend", "a dog", "--model", models / "decoder", "--out", picture,
            "--max-new-tokens", 3, "--layers", "0", "--heads", "0")  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------- files of models


def test_convert_reads_what_others_split_and_writes_it_whole(capsys, models, tmp_path):
    from safetensors.numpy import load_file, save_file

    source, split, target = models / "decoder", tmp_path / "split", tmp_path / "whole"
    split.mkdir()
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, split / file)
    index = {name: file for file, chosen in parts.items() for name in chosen}
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (split / name).write_bytes((source / name).read_bytes())
    assert "parameters in" in printed(capsys, "convert", split, target)
    first, second = map(Transformer.from_pretrained, (source, target))
    assert second.tokenizer == first.tokenizer
    for name, tensor in first.parameters().items():
        assert np.array_equal(tensor.numpy(), second.parameters()[name].numpy()), name
    assert "--overwrite" in fails(capsys, 1, "convert", split, target)
    printed(capsys, "convert", split, target, "--overwrite")


def test_convert_merges_adapters(capsys, models, tmp_path):
    model = Transformer.from_pretrained(models / "decoder")
    model.add_lora(LoraConfig(rank=2))
    for name, tensor in model.parameters().items():
        if name.endswith("lora_b"):
            write(tensor, 0.1)
    with pytest.warns(UserWarning, match=r"merge_lora\(\)"):
        model.save_pretrained(tmp_path / "with")
    model.save_adapter(tmp_path / "adapter", base_model=str(models / "decoder"))
    model.save_adapter(tmp_path / "nameless")
    model.merge_lora()
    for source, words in (
        ("with", []),
        ("adapter", []),
        ("nameless", ["--base", models / "decoder"]),
    ):
        target = tmp_path / f"{source}-merged"
        printed(capsys, "convert", tmp_path / source, target, "--merge-lora", *words)
        found = Transformer.from_pretrained(target)
        assert found.config == model.config
        assert found.tokenizer is not None
        for name, tensor in model.parameters().items():
            assert np.array_equal(tensor.numpy(), found.parameters()[name].numpy()), name
    status, _, err = run(capsys, "convert", tmp_path / "adapter", tmp_path / "kept")
    assert (status, len(err.splitlines())) == (0, 1)
    assert err.startswith("llmcore: warning: save_pretrained: the model has adapters")
    assert "--merge-lora" in err
    assert Transformer.from_pretrained(tmp_path / "kept").config.lora.rank == 2
    words = ["convert", tmp_path / "nameless", tmp_path / "none"]
    assert "give --base" in fails(capsys, 1, *words)
    words[1] = models / "decoder"
    assert "has no adapters" in fails(capsys, 1, *words, "--merge-lora")
    assert "--base is for an adapter" in fails(capsys, 1, *words, "--base", models / "both")
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("generate encoder --prompt a", "the model is an encoder, which has no decoder"),
        ("generate both", "give it as --prompt"),
        ("generate decoder --prompt a --num-beams 500", "at most the vocabulary's size"),
        ("generate decoder --prompt a --target x", "--target"),
        ("translate decoder --text a", "this one is a decoder; generate(prompt)"),
        ("translate encoder --text a", "this one is an encoder"),
        ("translate both --text a --num-beams 500", "at most the vocabulary's size"),
        ("translate both --text a --target-language fr_FR", "'fr_FR' is no token"),
        ("translate both --text ok --text LONG", "--text: text 2 has 60 tokens"),
        ("translate both --input none.txt", "there is no file none.txt"),
        ("translate both --input empty.txt", "there is no text in empty.txt"),
        ("translate both --input long.txt --batch-size 2", "long.txt: line 5 has 60 tokens"),
        ("translate nowhere --text a", "there is no model at nowhere"),
        ("fill-mask decoder --text a", "the model is a decoder"),
        ("fill-mask decoder --text a --bidirectional", "the tokenizer has no mask token"),
        ("fill-mask both --text a", "an encoder-decoder"),
        ("fill-mask encoder --text a", "--text: text 1 has no mask; put [MASK]"),
        ("fill-mask encoder --text [MASK] --top-k 900", "top_k must be from 1 to"),
        ("classify encoder --text a", "the model has no classifier"),
        ("classify classifier --text LONG", "text 1 has 32 tokens"),
        ("embed encoder --text a --out v.npy --pooling pooler", "the model has no pooler"),
        ("embed encoder --text a --out none/v.npy", "No such file or directory"),
        ("score encoder --text a", "gives texts no probability"),
        ("score both --text a", "give --sources"),
        ("score decoder --text a --sources ok.txt", "sources are for a model with an encoder"),
        ("attend a --model decoder --layers 7", "layers must be numbers from 0 to 1"),
        ("attend a --model decoder --target b", "a target is for a model with an encoder"),
        ("attend a --model encoder --max-new-tokens 3", "an encoder writes nothing"),
        ("attend LONG --model decoder", "text has 59 tokens, the model has positions for 24"),
        ("attend a --model decoder --out a.png --kind cross", "has no cross attention"),
        ("convert nowhere there", "there is no model at nowhere"),
        (
            "plan --model bert-base --objective causal",
            "trains a decoder, but",
        ),
        ("plan --objective seq2seq", "trains an encoder-decoder, but the model is a decoder"),
    ],
)
def test_mistakes_exit_1(capsys, models, monkeypatch, tmp_path, words, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "ok.txt").write_text("a\n")
    long = " ".join("wdog"[n % 4] for n in range(30))
    (tmp_path / "long.txt").write_text(f"a\n\na\n\n{long}\n")
    command, *rest = words.split()
    rest = [long if word == "LONG" else word for word in rest]
    rest = [models / word if (models / word).is_dir() else word for word in rest]
    status = 2 if hint.startswith("--target") else 1
    assert hint in fails(capsys, status, command, *rest)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["translate", "both", "--text", " "], "--text must not be empty"),
        (["translate", "both", "--text", "a", "--input", "b"], "exclude each other"),
        (["translate", "both", "--text", "a", "--n-best", 5], "at most --num-beams, 4, got 5"),
        (["generate", "decoder", "--n-best", 2], "at most --num-beams, 1, got 2"),
        (["generate", "decoder", "--num-beams", 2, "--temperature", 0.5], "does not sample"),
        (["embed", "encoder", "--text", "a", "--out", "v.csv"], "must end in .npy"),
        (["embed", "encoder", "--text", "a"], "--out"),
        (["embed", "encoder", "--text", "a", "--out", "v.npy", "--pooling", "max"], "one of mean"),
        (["generate", "decoder", "--dtype", "float33"], "one of float32, bfloat16, int8, int4"),
        (["score", "decoder", "--text", "a", "--device", "gpu"], "cpu, cuda or cuda:<index>"),
        (["plan", "--device", "gpu"], "cpu, cuda or cuda:<index>"),
        (["bench", "machine", "--device", "gpu"], "cpu, cuda or cuda:<index>"),
        (["attend", "a", "--model", "decoder", "--out", "a.pdf"], "must end in .html or .png"),
        (["attend", "a", "--model", "decoder", "--heads", "one"], "numbers such as 0,2"),
        (["attend", "a", "--model", "decoder", "--layers", "-1"], "numbers such as 0,2"),
        (["attend", "a", "--out", "a.png", "--kind", "self"], "one of encoder, decoder, cross"),
        (["tokenize", "none.txt", "--out", "o", "--tokenizer", "bpee"], "did you mean 'bpe'"),
        (["plan", "--lora-targets", "w"], "lora_targets must be some of q, k, v, out"),
        (["attend", " ", "--model", "decoder"], "TEXT must not be empty"),
        (["convert", "decoder"], "target"),
    ],
)
def test_command_lines_that_are_wrong_exit_2(capsys, models, monkeypatch, tmp_path, words, hint):
    monkeypatch.chdir(tmp_path)
    words = [models / word if word in ("both", "decoder", "encoder") else word for word in words]
    assert hint in fails(capsys, 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_is_not_waited_for(capsys, models, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert "text on standard input" in fails(capsys, 2, "classify", models / "classifier")


def test_a_closed_standard_input_is_no_traceback(models):
    process = child("classify", models / "classifier", stdin=-3)  # /dev/null
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "llmcore: there is no text in standard input\n")
