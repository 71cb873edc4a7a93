"""`llmcore bench`: the machine's ceilings, turns of engines, floors, reports, the command."""

from __future__ import annotations

import importlib.util
import json
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import llmcore
from command import fails, run
from llmcore import _core
from llmcore.bench import Ceilings, measure_ceilings
from llmcore.bench.operations import Operations
from llmcore.bench.plot import draw
from llmcore.bench.report import Contest, hold_contest
from llmcore.bench.turns import Contestant, Outcome, Turns, take_turns
from llmcore.bench.workloads import Generation, Training
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError, DTypeError, ShapeError

pytestmark = pytest.mark.cpu("its speed")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Times mean nothing here, so nobody waits for others' threads to rest."""
    monkeypatch.setattr("llmcore.bench.turns._SETTLE_SECONDS", 0.0)


def test_ceilings_are_plausible_and_leave_the_threads_as_they_were():
    before = llmcore.get_num_threads()
    found = measure_ceilings([1, 2, 1], seconds=0.02, size=1 << 26)
    assert [ceilings.threads for ceilings in found] == [1, 2]
    assert llmcore.get_num_threads() == before
    for ceilings in found:
        assert 1e9 < ceilings.flops < 1e14
        assert 1e8 < ceilings.memory_bytes_per_second < 1e13
        assert 1e8 < ceilings.cache_bytes_per_second < 1e14
        assert 1e9 < ceilings.bfloat16_flops < 1e15
        assert 1e9 < ceilings.int8_flops < 1e15
        assert ceilings.peak("int4") == ceilings.peak("int8") == ceilings.int8_flops


def test_there_is_a_peak_of_three_formats_alone():
    with pytest.raises(DTypeError, match="float32, bfloat16 or int8, got int64"):
        _core.measure_peak(0.01, "int64")


def test_no_matrix_product_exceeds_the_peak(rng):
    a = llmcore.tensor(rng.standard_normal((512, 512), dtype="float32"))
    c = llmcore.zeros([512, 512])
    best = min(_timed(time.perf_counter, a, c) for _ in range(20))
    assert 2 * 512**3 / best < 1.05 * _core.measure_peak(0.2)


def _timed(clock, a, c):
    start = clock()
    _core.matmul(a=a, b=a, c=c)
    return clock() - start


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": []}, "from 1 on"),
        ({"threads": [0]}, "from 1 on, got [0]"),
        ({"seconds": 0.0}, "positive"),
        ({"size": 1}, "positive"),
        ({"size": 1 << 60}, "smaller size"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises((ConfigError, llmcore.errors.OutOfMemory)) as error:
        measure_ceilings(**settings)
    assert words in str(error.value)


def test_reading_needs_an_element_a_thread():
    with pytest.raises(ShapeError, match="an element for each"):
        _core.measure_read(llmcore.zeros([0]), 0.01)


def test_command_prints_a_table_or_json(capsys):
    words = ("bench", "machine", "--threads", "1", "--seconds", "0.01")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "GFLOP/s" in out
    _, out, _ = run(capsys, *words, "--json")
    assert json.loads(out)[0]["threads"] == 1


def test_command_blames_the_command_line(capsys):
    assert "whole numbers" in fails(capsys, 2, "bench", "machine", "--threads", "two")
    assert "Missing command" in fails(capsys, 2, "bench")


# ---------------------------------------------------------------------------- turns


def turns(*contestants, measures=("run",), **settings):
    """Outcomes by name; contestants are names of functions, or with options, of contestants.py."""
    entrants = [Contestant(c, f"contestants:{c}") if isinstance(c, str) else c for c in contestants]
    settings = {"rounds": 2, "seconds": 0.0, **settings}
    return {o.name: o for o in take_turns(entrants, list(measures), **settings)}


def test_every_run_of_every_round_counts_and_the_warm_up_does_not():
    outcome = turns("steady", measures=("run", "other"), rounds=3)["steady"]
    assert outcome.error is None
    assert outcome.version == "1.0"
    assert outcome.turns["run"].seconds == [0.25] * 3
    assert outcome.turns["other"].seconds == [0.5] * 3
    assert outcome.turns["run"].peak_bytes is None or outcome.turns["run"].peak_bytes > 1 << 20


def test_a_turn_lasts_as_long_as_it_should():
    outcome = turns("steady", rounds=1, seconds=0.01)["steady"]
    assert len(outcome.turns["run"].seconds) > 2  # its runs take no time at all


def test_one_runs_at_a_time_and_another_begins_each_round(tmp_path):
    file = tmp_path / "diary"
    entrants = [
        Contestant(name, "contestants:diary", {"path": str(file), "name": name}) for name in "abc"
    ]
    turns(*entrants, rounds=2)
    lines = file.read_text().splitlines()
    assert [line.split() for line in lines[1::2]] == [[name, "ends"] for name in "abcabcbca"]
    assert lines[0::2] == [line.replace("ends", "begins") for line in lines[1::2]]


def test_files_are_prepared_in_another_process(tmp_path):
    options = {"path": str(tmp_path / "file"), "name": "x"}
    entrant = Contestant("x", "contestants:prepared", options, prepare="contestants:prepare")
    text, process = turns(entrant)["x"].witness
    assert text.startswith("x prepared in ")
    assert text != f"x prepared in {process}"


def test_libraries_are_told_how_many_threads_they_may_use():
    assert turns("environment", threads=3)["environment"].witness == ["3"] * 4


def test_a_late_start_is_waited_for_and_shown():
    outcomes = turns("late", "steady")
    assert outcomes["late"].ready_seconds > 0.5
    assert len(outcomes["late"].turns["run"].seconds) == 2


def test_what_libraries_print_does_no_harm():
    assert turns("chatty")["chatty"].error is None


@pytest.mark.parametrize(
    ("contestant", "words"),
    [
        ("refuses", "not available: it has no such thing"),
        ("not_installed", "no_such_package_anywhere is not installed"),
        ("dies", "ended with status 3: cannot allocate the moon"),
        ("no_such_function", "AttributeError"),
    ],
)
def test_who_does_not_start_says_why_and_the_others_go_on(contestant, words):
    heard = []
    outcomes = turns(contestant, "steady", tell=heard.append)
    assert words in outcomes[contestant].error
    assert "\n" not in outcomes[contestant].error
    assert outcomes[contestant].turns == {}
    assert len(outcomes["steady"].turns["run"].seconds) == 2
    assert heard[0] == f"{contestant}: {outcomes[contestant].error}"


def test_who_does_not_answer_is_not_waited_for_forever():
    outcomes = turns("hangs", "steady", timeout=1.5)
    assert outcomes["hangs"].error == "no answer for 1.5 seconds"
    assert len(outcomes["steady"].turns["run"].seconds) == 2


def test_what_was_measured_before_a_crash_is_kept():
    stops = Contestant("stops", "contestants:stops_at", {"run": 3})
    outcomes = turns(stops, "steady", rounds=3)
    assert outcomes["stops"].error == "killed by signal 9"
    assert outcomes["stops"].turns["run"].seconds == [0.25]  # the first run warmed up
    assert len(outcomes["steady"].turns["run"].seconds) == 3


def test_a_measure_that_fails_leaves_the_others_be():
    raises = Contestant("raises", "contestants:raises_at", {"run": 2})
    outcome = turns(raises, measures=("run", "other"))["raises"]
    assert outcome.error is None
    assert outcome.turns["run"].error == "ValueError: no more"
    assert outcome.turns["run"].seconds == []
    assert outcome.turns["other"].seconds == [0.5, 0.5]


def test_a_measure_that_a_contestant_lacks_is_left_out():
    assert list(turns("lacks", measures=("run", "other"))["lacks"].turns) == ["other"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rounds": 0}, "rounds"), ({"threads": 0}, "threads"), ({"seconds": -1.0}, "seconds")],
)
def test_turns_need_settings_in_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        turns("steady", **settings)


def test_turns_need_contestants_of_different_names():
    with pytest.raises(ConfigError, match="once"):
        turns("steady", "steady")
    with pytest.raises(ConfigError, match="some engines"):
        turns()


# ---------------------------------------------------------------------------- floors

LIMITS = Ceilings(threads=1, flops=200e9, bfloat16_flops=400e9, int8_flops=800e9,
                  cache_bytes_per_second=100e9, memory_bytes_per_second=40e9)  # fmt: skip


def only(workload):
    [measure] = workload.measures()
    return measure


def test_a_step_of_gpt2_is_counted_as_palm_counts():
    step = only(Training("gpt2", 4, 64))
    config = ModelConfig.preset("gpt2")
    assert step.amount == 256
    assert step.operations == config.flops_per_token(64) * 256
    assert step.bytes == 28 * config.num_parameters()  # three read and written, the gradient read
    assert step.floors(LIMITS) == {
        "arithmetic": step.operations / 200e9, "memory": step.bytes / 40e9,
    }  # fmt: skip


def test_a_masked_head_counts_on_the_masked_rows_alone():
    training = Training("bert-base", 8, 128)
    rows = len(training.data().targets)
    assert 100 < rows < 220  # 15 % of 1024
    config = training.config
    whole = config.flops_per_token(128) * 1024
    head = 6 * (30522 * 768 + 768 * 768)
    assert only(training).operations == whole - head * (1024 - rows)


@pytest.mark.parametrize(
    ("weights", "peak"),
    [("float32", 200e9), ("bfloat16", 400e9), ("int8", 800e9), ("int4", 800e9)],
)
def test_the_peak_is_that_of_the_number_format(weights, peak):
    for measure in Generation("gpt2", 32, 128, weights=weights).measures()[1:]:
        assert measure.floors(LIMITS)["arithmetic"] == measure.operations / peak
    if weights in ("float32", "bfloat16"):
        step = only(Training("gpt2", 4, 64, weights))
        assert step.floors(LIMITS)["arithmetic"] == step.operations / peak


def test_pairs_count_both_sides():
    training = Training("transformer-base", 32, 30, vocab_size=8000)
    data = training.data()
    assert only(training).amount == 2 * 32 * 30
    assert data.enc_ids.shape == data.dec_ids.shape == (32, 30)
    assert only(training).operations == training.config.flops_per_token(30) * 32 * 30


def test_batches_are_the_same_in_every_process():
    for model in ("gpt-nano", "bert-base", "transformer-base"):
        first, second = (Training(model, 2, 16).data() for _ in range(2))
        assert np.array_equal(first.targets, second.targets)


@pytest.mark.parametrize(("weights", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 8)])
def test_decoding_reads_every_weight_and_the_cache_once_a_token(weights, bits):
    _, _, decode = Generation("gpt2", 32, 128, [8], weights=weights).measures()
    layers, head = 12 * (12 * 768**2), 50257 * 768
    keys = 32 + 64
    cache = 8 * 2 * 12 * 768 * keys * (4 if weights == "float32" else 2)
    assert decode.amount == 8 * 127
    assert decode.bytes == ((layers + head) * bits / 8 + cache) * 127
    attention = 4 * 12 * 768 * keys
    assert decode.operations == (2 * (layers + head) + attention) * 8 * 127


def test_prefill_needs_the_head_once():
    prefill = Generation("gpt2", 32, 128).measures()[1]
    layers, head = 12 * (12 * 768**2), 50257 * 768
    assert prefill.amount == 512
    assert prefill.operations == 2 * layers * 512 + 2 * head + 4 * 12 * 768 * 512**2


def test_translation_reads_the_decoder_once_a_token_for_all_beams():
    one, four = (
        Generation("transformer-base", 40, 40, [16], beams=beams, vocab_size=8000).measures()[1]
        for beams in (1, 4)
    )
    assert one.amount == four.amount == 16 * 40
    assert 2.5 * one.operations < four.operations < 4 * one.operations  # the encoder runs once
    assert four.bytes < 2 * one.bytes  # only the caches are more


def test_operations_by_hand():
    measures = {m.name: m for m in Operations(rows=[256], lengths=[64]).measures()}
    product = measures["y 256 x 768 x 3072"]
    assert product.operations == 2 * 256 * 768 * 3072
    assert product.bytes == 4 * (256 * 768 + 768 * 3072 + 256 * 3072)
    assert measures["attention 4 x 12 x 64 x 64"].operations == 4 * 64 * 48 * 64 * 65 / 2
    assert measures["adamw 16777216"].bytes == 28 * 2**24


# ---------------------------------------------------------------------------- reports


def contest(workload, **seconds):
    """A contest whose engines' one measure took these seconds."""
    outcomes = [
        Outcome(name, "1.0", 0.1, 4.0, {only(workload).name: Turns(list(times), 1 << 20)})
        for name, times in seconds.items()
    ]
    return Contest(workload, LIMITS, outcomes)


def test_rows_are_medians_quartiles_and_ratios():
    workload = Training("gpt-nano", 1, 8)
    step = only(workload)
    found = contest(workload, llmcore=[1.0, 2.0, 3.0, 4.0, 5.0], torch=[6.0, 6.0])
    ours, theirs = found.rows(step)
    assert (ours.engine, ours.runs, ours.seconds) == ("llmcore", 5, 3.0)
    assert (ours.slow_rate, ours.rate, ours.fast_rate) == (8 / 4.0, 8 / 3.0, 8 / 2.0)
    assert ours.share_of_peak == step.operations / 200e9 / 3.0
    assert ours.share_of_memory == step.bytes / 40e9 / 3.0
    assert (ours.ratio, theirs.ratio) == (1.0, 2.0)
    assert found.agreements() == {"torch": "first loss 4.000000, llmcore's 4.000000"}


def test_without_llmcore_there_are_no_ratios():
    workload = Training("gpt-nano", 1, 8)
    [row] = contest(workload, torch=[1.0]).rows(only(workload))
    assert row.ratio is None
    assert row.slow_rate == row.rate == row.fast_rate


def test_absences_are_one_line_an_engine():
    found = Contest(
        Training("gpt-nano", 1, 8), LIMITS,
        [Outcome("a", error="is not installed"), Outcome("b", turns={"step": Turns(error="no")}),
         Outcome("c", turns={"step": Turns([1.0])})],
    )  # fmt: skip
    assert found.absences() == {"a": "is not installed", "b": "step: no"}


def test_summaries_are_geometric_means_over_the_sizes():
    workload = Operations(["matmul"], rows=[256])
    names = [m.name for m in workload.measures()]
    ours, theirs = ({name: Turns([seconds]) for name in names} for seconds in (1.0, 3.0))
    found = Contest(workload, LIMITS, [Outcome("llmcore", turns=ours), Outcome("x", turns=theirs)])
    rows = {(row["kind"], row["engine"]): row for row in found.summaries()}
    assert rows["y", "x"]["ratio"] == pytest.approx(3.0)
    shares = [m.operations / 200e9 for m in workload.measures() if m.name.startswith("y ")]
    assert rows["y", "llmcore"]["sizes"] == 5
    assert rows["y", "llmcore"]["share_of_peak"] == pytest.approx(np.prod(shares) ** (1 / 5))
    assert rows["y", "llmcore"]["lowest_share_of_peak"] == min(shares)


def test_the_plot_is_a_picture_of_the_rows():
    svg = draw([contest(Training("gpt-nano", 1, 8), llmcore=[1.0, 2.0], torch=[6.0])])
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.count('class="ours"') == 1
    assert svg.count('class="peer"') == 1
    assert "(4.00 ×)" in svg


# ---------------------------------------------------------------------------- workloads and engines


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Training("gtp2", 1, 8), "did you mean 'gpt2'"),
        (lambda: Training("gpt2", 0, 8), "batch"),
        (lambda: Training("gpt2", 1, 1025), "1024"),
        (lambda: Training("gpt2", 1, 8, "float16"), "float32, bfloat16"),
        (lambda: Generation("bert-base", 1, 8), "no decoder|has none"),
        (lambda: Generation("gpt2", 1000, 100, prefill=8), "1024 positions"),
        (lambda: Generation("gpt2", 8, 1), "new"),
        (lambda: Generation("gpt2", 8, 8, [0]), "batch"),
        (lambda: Generation("gpt2", 8, 8, beams=0), "beams"),
        (lambda: Generation("gpt2", 8, 8, weights="int3"), "int4"),
        (lambda: Operations(["matmull"]), "did you mean 'matmul'"),
        (lambda: Operations(rows=[0]), "rows"),
    ],
)
def test_bad_workloads_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt-nano", "bert-base", "transformer-base"])
def test_training_torch_starts_from_the_same_loss(model):
    needs("torch", "transformers")
    fields = {} if model == "gpt-nano" else {"vocab_size": 200}
    agree(Training(model, 2, 8, **fields), "torch", tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "packages"),
    [
        ("transformers", ("torch", "transformers")),
        ("ctranslate2", ("torch", "transformers", "ctranslate2")),
        ("llama.cpp", ("gguf", "llama_cpp")),
    ],
)
def test_peers_generate_the_same_tokens(peer, packages):
    needs(*packages)
    agree(Generation("gpt-nano", 8, 12, [1, 2], prefill=16), peer)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["transformers", "ctranslate2"])
def test_peers_translate_to_the_same_tokens(peer):
    needs("torch", "transformers", peer)
    workload = Generation("transformer-base", 6, 6, [2], beams=2, vocab_size=200)
    agree(workload, peer)


@pytest.mark.parametrize(
    ("peer", "packages"),
    [("torch", ("torch",)), ("onnxruntime", ("onnx", "onnxruntime")), ("numpy", ())],
)
def test_peers_run_their_operations(peer, packages):
    needs(*packages)
    found = hold_contest(
        Operations(["attention", "layer_norm"], lengths=[8]), [peer], ceilings=LIMITS,
        rounds=1, seconds=0.0,
    )  # fmt: skip
    assert not found.absences()
    engines = [[row.engine for row in found.rows(m)] for m in found.workload.measures()]
    assert all("llmcore" in row for row in engines)
    assert any(peer in row for row in engines)


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def agree(workload, peer, tolerance=0.0):
    """A peer runs everything there is, and computes what llmcore does."""
    found = hold_contest(workload, [peer], ceilings=LIMITS, rounds=1, seconds=0.0)
    assert not found.absences()
    ours, theirs = (outcome.witness for outcome in found.outcomes)
    assert theirs == (pytest.approx(ours, rel=tolerance) if tolerance else ours)
    for measure in workload.measures():
        assert [row.engine for row in found.rows(measure)] == ["llmcore", peer]


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_llmcore_generates_with_every_kind_of_weights(weights):
    workload = Generation("gpt-nano", 4, 3, [1, 2], prefill=4, weights=weights)
    found = hold_contest(workload, [], ceilings=LIMITS, rounds=1, seconds=0.0)
    assert not found.absences()
    assert all(found.rows(measure) for measure in workload.measures())


def test_llmcore_trains_in_bfloat16():
    found = hold_contest(
        Training("gpt-nano", 1, 8, "bfloat16"), [], ceilings=LIMITS, rounds=1, seconds=0.0
    )
    assert not found.absences()


def test_weights_that_an_engine_lacks_are_said_to_be_not_available():
    needs("torch", "transformers")
    found = hold_contest(
        Generation("gpt-nano", 4, 3, prefill=4, weights="int4"), ["transformers", "ctranslate2"],
        ceilings=LIMITS, rounds=1, seconds=0.0,
    )  # fmt: skip
    reasons = found.absences()
    assert reasons["transformers"].startswith("not available: no int4 weights")
    assert reasons["ctranslate2"].startswith(("not available: no int4", "ctranslate2 is not"))


# ---------------------------------------------------------------------------- the command

TINY = ("--rounds", 2, "--seconds", 0, "--threads", 1)


@pytest.mark.parametrize(
    ("words", "measures"),
    [
        (("train", "--model", "gpt-nano", "--batch", 2, "--length", 8), ["step"]),
        (
            ("generate", "--model", "gpt-nano", "--prompt", 4, "--new", 3, "--batch", "1,2",
             "--prefill", 8),
            ["load", "prefill 8", "decode batch 1", "decode batch 2"],
        ),
        (
            ("generate", "--model", "transformer-base", "--prompt", 3, "--new", 3, "--beams", 2,
             "--vocab-size", 100),
            ["load", "translate batch 1"],
        ),
        (
            ("ops", "--only", "attention", "--lengths", 8),
            ["attention 4 x 12 x 8 x 64", "attention+grad 4 x 12 x 8 x 64"],
        ),
    ],
)  # fmt: skip
def test_command_writes_a_table_json_and_a_plot(capsys, tmp_path, words, measures):
    file, plot = tmp_path / "f.json", tmp_path / "f.svg"
    status, out, err = run(capsys, "bench", *words, *TINY, "--json", file, "--plot", plot)
    assert (status, err) == (0, "")
    report = json.loads(file.read_text())
    assert set(report) == {"settings", "machine", "versions", "contests"}
    [found] = report["contests"]
    assert [m["name"] for m in found["measures"]] == measures
    for measure in found["measures"]:
        assert measure["name"] in out
        assert set(measure["floors"]) == {"arithmetic", "memory"}
        [row] = measure["engines"]
        assert row["engine"] == "llmcore"
        assert row["runs"] >= 2
        assert row["slow_rate"] <= row["rate"] <= row["fast_rate"]
        assert row["ratio"] == 1.0
    [outcome] = found["engines"]
    assert outcome["error"] is None
    assert (
        len(outcome["turns"][measures[0]]["seconds"]) == found["measures"][0]["engines"][0]["runs"]
    )
    assert plot.read_text().startswith("<svg")


def test_command_repeats_for_threads_and_weights(capsys, tmp_path):
    file = tmp_path / "f.json"
    words = ("--model", "gpt-nano", "--prompt", 4, "--new", 2, "--prefill", 4)
    threads = ("--rounds", 1, "--seconds", 0, "--threads", "1,2", "--weights", "float32,int8")
    assert run(capsys, "bench", "generate", *words, *threads, "--json", file)[0] == 0
    found = json.loads(file.read_text())["contests"]
    assert [(c["workload"]["weights"], c["ceilings"]["threads"]) for c in found] == [
        ("float32", 1), ("float32", 2), ("int8", 1), ("int8", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--model", "gtp2"), "did you mean 'gpt2'"),
        (("train", "--against", "jax"), "torch, torch-compile"),
        (("train", "--against", "torch,torch"), "once"),
        (("train", "--dtype", "float8"), "float32, bfloat16"),
        (("train", "--plot", "f.png"), "f.png"),
        (("train", "--json", "no/such/place/f.json"), "no directory"),
        (("train", "--rounds", 0), "rounds"),
        (("train", "--threads", "two"), "whole numbers"),
        (("generate", "--batch", "one"), "whole numbers"),
        (("generate", "--weights", "int2"), "int4"),
        (("generate", "--weights", ","), "weights"),
        (("generate", "--against", "torch"), "llama.cpp"),
        (("ops", "--only", "matmult"), "did you mean 'matmul'"),
    ],
)
def test_command_says_in_a_line_what_is_wrong(capsys, words, said):
    assert said in fails(capsys, 2, "bench", *words)


def test_command_fails_where_no_engine_could_run(capsys, monkeypatch):
    def nobody(*args, **kwargs):
        return [Outcome("llmcore", error="not today")]

    monkeypatch.setattr("llmcore.bench.report.take_turns", nobody)
    words = ("--model", "gpt-nano", "--length", 8, "--threads", 1)
    line = fails(capsys, 1, "bench", "train", *words)
    assert "no engine could run: llmcore: not today" in line


@pytest.mark.parametrize("command", ["machine", "train", "generate", "ops"])
def test_help_has_an_example(capsys, command):
    status, out, _ = run(capsys, "bench", command, "--help")
    assert status == 0
    assert f"llmcore bench {command}" in out.split("Example")[1]
