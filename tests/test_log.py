"""Metrics file, progress line, formats, and the loss curve drawn from them."""

from __future__ import annotations

import io
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from llmcore.training.log import (
    MetricsLog,
    Progress,
    format_bytes,
    format_count,
    format_duration,
    read_metrics,
)
from llmcore.viz import loss_curve, round_ticks, save_loss_curve


def test_metrics_reach_the_file_at_once_and_are_strict_json(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(step=1, loss=0.1, note="x")
    log.write(step=2, loss=math.nan, other=-math.inf)
    lines = (tmp_path / "m.jsonl").read_text().splitlines()  # before close: as after a kill

    def refuse(word):
        raise AssertionError(f"not JSON: {word}")

    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert records[0]["loss"] == 0.1
    assert records[1]["loss"] == "nan"
    assert records[1]["other"] == "-inf"
    assert records == log.records
    log.close()


@pytest.mark.parametrize("tail", ["", "{", '{"step": 4, "loss"', "null\n", "[1]\n", '{"x": 1}\n'])
def test_a_resumed_file_is_cut_to_the_step(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 10):
            log.write(step=step)
    path.write_text(path.read_text() + tail)
    with MetricsLog(path, keep_until=6) as log:
        log.write(step=7, again=True)
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7]
    assert read_metrics(path)[-1]["again"]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.write(step=1)
    with MetricsLog(path) as log:
        assert log.records == []
    assert path.read_text() == ""
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_names_the_file():
    log = MetricsLog.__new__(MetricsLog)
    log.records = []
    log.path = "/dev/full"
    log._file = open("/dev/full", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        log.write(step=1)
    log.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_plain_lines_in_a_pipe():
    stream = io.StringIO()
    progress = Progress(2000, stream=stream)
    progress.update(7, ["loss 1.5", "ETA 0:10"])
    progress.say("[not markup]")
    progress.close()
    assert stream.getvalue() == "step    7/2000  loss 1.5  ETA 0:10\n[not markup]\n"


@pytest.mark.parametrize("columns", ["40", "200"])
def test_progress_in_a_terminal_fits_its_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(100, stream=stream)
    progress.update(50, ["loss 1.5", "ETA 0:10", "norm 0.25 and more words"])
    progress.say("[kept] as it is")
    progress.close()
    shown = stream.getvalue()
    assert "step  50/100  loss 1.5" in shown
    assert ("norm 0.25" in shown) == (columns == "200")
    assert "[kept] as it is" in shown


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (124439808, "124M"), (2.5e12, "2.50T")],
)
def test_format_count(number, text):
    assert format_count(number) == text


def test_other_formats():
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(2**30) == "1.0 GiB"
    assert format_duration(0) == "0:00"
    assert format_duration(59.6) == "1:00"
    assert format_duration(86400) == "24:00:00"


# ----------------------------------------------------------------------------- the curve


def parse(svg):
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    lines = {
        line.get("class").split()[0]: [
            tuple(map(float, pair.split(","))) for pair in line.get("points").split()
        ]
        for line in root.iter(name + "polyline")
    }
    texts = [text.text for text in root.iter(name + "text")]
    return lines, texts


def history(steps=400, every=10):
    records = [{"step": s, "loss": 1.5 + math.exp(-s / 50)} for s in range(1, steps + 1)]
    return records + [
        {"step": s, "val_loss": 1.7 + math.exp(-s / 50)} for s in range(0, steps + 1, every * 10)
    ]


def test_curve_is_drawn_to_scale_inside_the_frame():
    lines, texts = parse(loss_curve(history(), title="a <b> & c"))
    assert "a <b> & c" in texts
    assert {"train", "validation", "step", "loss"} <= set(texts)
    assert "1.718" not in texts
    assert f"{1.7 + math.exp(-8):.3f}" in texts
    assert f"{1.5 + math.exp(-8):.3f}" in texts
    for points in lines.values():
        xs, ys = np.array(points).T
        assert (np.diff(xs) > 0).all()
        assert (np.diff(ys) >= 0).all()  # the loss falls; y grows downwards
        assert 0 < xs.min() <= xs.max() < 760
        assert 0 < ys.min() <= ys.max() < 440
    (x0, y0), (x1, y1) = lines["val"][0], lines["val"][-1]
    span = 1.0 - math.exp(-8)
    train = np.array(lines["train"])
    expected = y0 + (2.7 - (1.5 + math.exp(-1 / 50))) / span * (y1 - y0)
    assert abs(train[0, 1] - expected) < 0.2
    assert abs(train[0, 0] - (x0 + (x1 - x0) / 400)) < 0.2


def test_curve_of_little_or_strange_data():
    assert "no steps yet" in loss_curve([])
    assert "no steps yet" in loss_curve([{"step": 3, "loss": "nan"}, {"step": 4, "loss": None}])
    for records in ([{"step": 0, "val_loss": 4.0}], [{"step": 5, "loss": 0.0}], history(2, 1)):
        parse(loss_curve(records))


def test_long_curve_stays_small_and_keeps_its_end():
    records = [{"step": s, "loss": float(s % 7)} for s in range(1, 100_001)]
    svg = loss_curve(records)
    assert len(svg) < 20_000
    _, texts = parse(svg)
    assert f"{100_000 % 7:.3f}" in texts
    assert "100k" in texts


def test_saved_curve_is_self_contained(tmp_path):
    save_loss_curve(history(), tmp_path / "loss.svg")
    svg = (tmp_path / "loss.svg").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["loss.svg"]
    assert "prefers-color-scheme: dark" in svg
    for reference in ("href", "url(", "<script", "@import"):
        assert reference not in svg


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_and_cover_the_range(seed):
    rng = np.random.default_rng(seed)
    low = float(rng.normal() * 10 ** rng.uniform(-4, 6))
    high = low + float(10 ** rng.uniform(-5, 6))
    most = int(rng.integers(2, 12))
    ticks = round_ticks(low, high, most)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert (high - low) / step <= most * (1 + 1e-9)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-4)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
