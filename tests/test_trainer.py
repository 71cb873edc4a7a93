"""The training loop on a small NumPy model: evaluation, checkpoints, resume, skips, signals."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmcore import checkpoint
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import CheckpointError, ConfigError, DataError, LlmcoreError
from llmcore.model import Transformer
from llmcore.parameters import parameter_shapes
from llmcore.tensor import write
from llmcore.training import plan
from llmcore.training.log import read_metrics
from llmcore.training.train_config import TrainConfig
from llmcore.training.trainer import Trainer, resolve_data

VOCAB = 11
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=6, num_decoder_layers=1, num_heads=1, max_positions=8,
    norm="rms", attention_bias=False, attention_out_bias=False, ffn_bias=False,
    tie_embeddings=False,
)  # fmt: skip


class Array:
    """Stands for a Tensor: ``numpy()`` shares memory."""

    def __init__(self, values):
        self._values = values

    def numpy(self):
        return self._values


class BigramModel:
    """logits(next | token) = head @ embedding[token]; every other parameter is dead weight."""

    def __init__(self, seed=0, config=CONFIG):
        self.config, self.recompute = config, False
        shapes = parameter_shapes(config)
        self.flat = np.zeros(sum(math.prod(s) for s in shapes.values()), np.float32)
        rng = np.random.default_rng(seed)
        self.flat[:] = rng.normal(0, 0.3, self.flat.size)
        self.views, start = {}, 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            self.views[name] = self.flat[start : start + size].reshape(shape)
            start += size

    def parameters(self):
        return {name: Array(view) for name, view in self.views.items()}

    def loss(self, batch):
        return self.loss_and_gradient(batch)[0] / batch.num_targets

    def loss_and_gradient(self, batch, mask=None):
        """Summed loss and its flat gradient."""
        table = self.views["embed.tokens.weight"]
        head = self.views.get("head.weight", table)
        ids = batch.dec_ids.reshape(-1)
        rows = np.arange(ids.size) if batch.rows is None else batch.rows
        hidden = table[ids[rows]] * (1 if mask is None else mask[: len(rows)])
        logits = hidden @ head.T
        logits -= logits.max(-1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(-1, keepdims=True)
        picked = np.arange(len(rows)), batch.targets
        loss = -float(np.log(p[picked], dtype=np.float64).sum())
        p[picked] -= 1
        gradient = np.zeros_like(self.flat)
        views, start = {}, 0
        for name, view in self.views.items():
            views[name] = gradient[start : start + view.size].reshape(view.shape)
            start += view.size
        head_gradient = views.get("head.weight", views["embed.tokens.weight"])
        head_gradient += p.T @ hidden
        back = (p @ head) * (1 if mask is None else mask[: len(rows)])
        np.add.at(views["embed.tokens.weight"], ids[rows], back)
        return loss, gradient


@dataclass
class Result:
    loss: float
    grad_norm: float
    targets: float
    skipped: bool


class NumpyTrainStep:
    """AdamW with clipping and counter-based dropout, the interface of `llmcore.TrainStep`."""

    def __init__(
        self, model, *, lr, betas, eps, weight_decay, max_grad_norm, dropout_seed,
        dtype="float32", poison=(),
    ):  # fmt: skip
        self.model, self.betas, self.eps, self.decay = model, betas, eps, weight_decay
        self.max_norm, self.seed, self.poison = max_grad_norm, dropout_seed, dict(poison)
        self.m, self.v = np.zeros_like(model.flat), np.zeros_like(model.flat)
        self.step_count = self.calls = 0

    def step(self, batch, lr, *, max_loss=math.inf, max_norm=math.inf):
        batches = batch if isinstance(batch, list) else [batch]
        total, targets, gradient = 0.0, sum(b.num_targets for b in batches), 0
        for index, micro in enumerate(batches):
            counter = [self.step_count, index, 0, 0]
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
            shape = micro.targets.size, self.model.config.hidden_size
            mask = (rng.random(shape) > 0.1).astype(np.float32) / 0.9
            loss, part = self.model.loss_and_gradient(micro, mask)
            total, gradient = total + loss, gradient + part
        loss, gradient = total / targets, gradient / np.float32(targets)
        loss *= self.poison.get(self.calls, 1.0)
        self.calls += 1
        norm = float(np.sqrt((gradient.astype(np.float64) ** 2).sum()))
        if not (math.isfinite(loss) and loss <= max_loss and norm <= max_norm):
            return Result(loss, norm, targets, True)
        if self.max_norm and norm > self.max_norm:
            gradient *= np.float32(self.max_norm / norm)
        self.step_count += 1
        b1, b2 = (np.float32(beta) for beta in self.betas)
        self.m += (1 - b1) * (gradient - self.m)
        self.v += (1 - b2) * (gradient**2 - self.v)
        m, v = self.m / (1 - b1**self.step_count), self.v / (1 - b2**self.step_count)
        update = m / (np.sqrt(v) + np.float32(self.eps)) + np.float32(self.decay) * self.model.flat
        self.model.flat -= np.float32(lr) * update
        return Result(loss, norm, targets, False)

    def state_dict(self):
        return {"m": self.m, "v": self.v, "step": self.step_count, "dropout_seed": self.seed}

    def load_state_dict(self, state):
        self.m[:], self.v[:] = state["m"], state["v"]
        self.step_count, self.seed = state["step"], state["dropout_seed"]


def poisoned(poison):
    """A TrainStep whose loss at call n is multiplied by poison[n]."""
    return lambda model, **settings: NumpyTrainStep(model, poison=poison, **settings)


def tokens(count=3000, seed=1):
    """A noisy cycle through the vocabulary: a bigram model can learn most of it."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(count) < 0.8, 1, rng.integers(0, VOCAB, count))
    return (np.cumsum(steps) % VOCAB).astype(np.int32)


def settings(out_dir, **changes):
    base = {
        "steps": 60, "batch_size": 3, "block_size": 7, "lr": 3e-2, "eval_interval": 20,
        "eval_batches": 4, "log_interval": 7, "out_dir": str(out_dir),
    }  # fmt: skip
    return TrainConfig.from_dict({**base, **changes})


def trainer(config, *, train_step=NumpyTrainStep, data=None, seed=0):
    ids = tokens()
    pair = (ids[:2500], ids[2500:])
    return Trainer(BigramModel(seed), pair if data is None else data, config, train_step=train_step)


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    monkeypatch.setattr(plan, "measure_peak_flops", lambda seconds=0.0: 1e9)


def weights(directory):
    loaded = checkpoint.load(directory)
    return {name: np.array(array) for name, array in loaded.parameters}


def same(one, two):
    return one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)


def losses(directory):
    """What the metrics file says, without what depends on the clock."""
    keys = ("step", "loss", "val_loss", "lr", "grad_norm", "skipped")
    return [
        {key: record[key] for key in keys if key in record}
        for record in read_metrics(Path(directory) / "metrics.jsonl")
    ]


def test_fit_learns_and_leaves_everything_behind(tmp_path, capsys):
    run = trainer(settings(tmp_path / "run", steps=150))
    before = run.evaluate()
    result = run.fit()
    assert result.reason == "finished"
    assert result.step == 150
    assert before > 2.3
    assert result.best_loss < 1.5 < before
    assert run.evaluate() == result.val_loss
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "last", "best", "metrics.jsonl", "loss.svg", "run.json",
    }  # fmt: skip
    assert same(weights(tmp_path / "run/last"), dict(run.model.views))
    printed = capsys.readouterr().out
    for word in ("parameters", "memory", "time", "best validation loss", "loss.svg"):
        assert word in printed
    records = losses(tmp_path / "run")
    assert [r["step"] for r in records if "val_loss" in r] == [
        0,
        20,
        40,
        60,
        80,
        100,
        120,
        140,
        150,
    ]
    assert [r["step"] for r in records if "loss" in r] == [*range(7, 150, 7), 150]
    assert json.loads((tmp_path / "run/run.json").read_text())["train"]["steps"] == 150


@pytest.mark.parametrize("sampling", ["random", "epoch"])
@pytest.mark.parametrize("cut", [20, 33, 59])
def test_resume_is_bit_for_bit(tmp_path, cut, sampling):
    """Stopped at any step, also between two lines of metrics, the rest is the same."""
    options = {"skip_outliers": 3.0, "accumulation": 2, "sampling": sampling}
    trainer(settings(tmp_path / "whole", **options)).fit()

    config = settings(tmp_path / "parts", **options)
    first = trainer(config)
    step = first._step.step

    def stop_at_cut(*args, **named):
        if first.state.step == cut - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **named)

    first._step.step = stop_at_cut
    result = first.fit()
    assert (result.reason, result.step, result.signal) == ("interrupted", cut, signal.SIGTERM)
    second = trainer(config.replace(resume=True), seed=5)  # other weights: all must be loaded
    assert second.fit().reason == "finished"
    for name in ("last", "best"):
        assert same(weights(tmp_path / "parts" / name), weights(tmp_path / "whole" / name))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole/last").state
    parts = checkpoint.load(tmp_path / "parts/last").state
    assert (whole.moments["m"] == parts.moments["m"]).all()
    assert (whole.moments["v"] == parts.moments["v"]).all()
    assert whole.history["run"] == parts.history["run"]


def test_kill_and_resume_until_done(tmp_path):
    """kill -9 again and again, wherever it hits; the end is that of an undisturbed run."""
    trainer(settings(tmp_path / "whole", save_interval=4)).fit()
    rng = np.random.default_rng()
    command = [sys.executable, __file__, str(tmp_path / "killed"), "0.005"]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()  # the run begins
        try:
            process.wait(timeout=float(rng.uniform(0.05, 0.3)) if kills < 4 else 30)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        if process.wait() == 0:
            break
        assert kills <= 4, "the run should have ended by now"
    assert same(weights(tmp_path / "killed/last"), weights(tmp_path / "whole/last"))
    assert same(weights(tmp_path / "killed/best"), weights(tmp_path / "whole/best"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_resume_before_the_first_checkpoint_starts_over(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    line = '{"step": 0, "val_loss": 9.0}\n'  # of the run that was killed
    (tmp_path / "run" / "metrics.jsonl").write_text(line, encoding="utf-8")
    result = trainer(settings(tmp_path / "run", resume=True, steps=5)).fit()
    assert result.step == 5
    assert "starting from step 0" in capsys.readouterr().out
    assert [r["val_loss"] for r in losses(tmp_path / "run") if r["step"] == 0] != [9.0]
    assert sum(r["step"] == 0 for r in losses(tmp_path / "run")) == 1


def test_resume_of_a_finished_run_does_nothing(tmp_path):
    trainer(settings(tmp_path / "run")).fit()
    before = (tmp_path / "run/last/model.safetensors").stat().st_mtime_ns
    result = trainer(settings(tmp_path / "run", resume=True)).fit()
    assert (result.reason, result.step) == ("finished", 60)
    assert result.val_loss is not None
    assert (tmp_path / "run/last/model.safetensors").stat().st_mtime_ns == before


def test_resume_with_other_settings(tmp_path, capsys):
    trainer(settings(tmp_path / "run", steps=20)).fit()
    capsys.readouterr()
    longer = trainer(settings(tmp_path / "run", steps=30, resume=True, log_interval=3))
    assert longer.fit().step == 30
    warning = [line for line in capsys.readouterr().out.splitlines() if "resuming with" in line]
    assert len(warning) == 1
    assert "steps from 20 to 30" in warning[0]
    assert "log_interval" not in warning[0]
    with pytest.raises(ConfigError, match="batch_size from 3 to 4"):
        trainer(settings(tmp_path / "run", steps=30, resume=True, batch_size=4)).fit()
    other = (tokens(seed=8)[:2500], tokens()[2500:])
    with pytest.raises(DataError, match="dataset was"):
        trainer(settings(tmp_path / "run", steps=30, resume=True), data=other).fit()
    with pytest.raises(CheckpointError, match="weights only"):
        trainer(settings(tmp_path / "run")).resume(tmp_path / "run/best")
    wider = ModelConfig.from_dict({**CONFIG.to_dict(), "ffn_size": 5})
    with pytest.raises(CheckpointError, match="ffn_size was 24 and is 5"):
        Trainer(
            BigramModel(0, wider), tokens(), settings(tmp_path / "run", resume=True),
            train_step=NumpyTrainStep,
        ).fit()  # fmt: skip


def test_an_existing_run_is_not_overwritten_by_accident(tmp_path):
    trainer(settings(tmp_path / "run", steps=4)).fit()
    with pytest.raises(CheckpointError, match=r"already holds a run.*--resume.*--overwrite"):
        trainer(settings(tmp_path / "run", steps=3)).fit()
    assert trainer(settings(tmp_path / "run", steps=3, overwrite=True)).fit().step == 3
    assert max(record["step"] for record in losses(tmp_path / "run")) == 3


def test_bad_steps_are_skipped_counted_and_told(tmp_path, capsys):
    run = trainer(settings(tmp_path / "run"), train_step=poisoned({4: math.nan, 9: math.inf}))
    result = run.fit()
    assert result.skipped == 2
    assert result.step == 60
    assert all(np.isfinite(view).all() for view in run.model.views.values())
    printed = capsys.readouterr().out
    assert "step 5 skipped: loss nan" in printed
    assert "2 steps skipped" in printed
    skips = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "skipped" in r]
    assert [(r["step"], r["bad_loss"]) for r in skips] == [(5, "nan"), (10, "inf")]


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path):
    model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1, hidden_size=16))
    write(model.parameters()["decoder.layers.0.feed_forward.up.weight"], math.inf)
    run = Trainer(model, tokens(), settings(tmp_path / "run", max_skips=2))
    name = "first not finite: the weight decoder.layers.0.feed_forward.up.weight"
    with pytest.raises(LlmcoreError, match=f"2 steps in a row were skipped.* {name}; lower lr"):
        run.fit()


def test_validation_losses_that_are_never_numbers_do_not_end_a_run(tmp_path, capsys, monkeypatch):
    run = trainer(settings(tmp_path / "run"))
    monkeypatch.setattr(run.model, "loss", lambda batch: math.nan)
    result = run.fit()
    assert (result.step, result.best_loss) == (60, None)
    assert capsys.readouterr().out.count("validation loss nan") >= 3


def test_outliers_are_skipped_if_asked(tmp_path):
    spike = poisoned({45: 10.0})
    calm = trainer(settings(tmp_path / "one", skip_outliers=6.0), train_step=spike)
    assert calm.fit().skipped == 1
    assert trainer(settings(tmp_path / "two"), train_step=spike).fit().skipped == 0


def test_too_many_skips_end_the_run_and_keep_the_checkpoint(tmp_path):
    always = poisoned(dict.fromkeys(range(45, 100), math.nan))
    with pytest.raises(LlmcoreError, match=r"10 steps in a row were skipped.*lower lr.*step 40"):
        trainer(settings(tmp_path / "run"), train_step=always).fit()
    assert checkpoint.load(tmp_path / "run/last").state.step == 40


def test_early_stopping_and_best(tmp_path):
    """All after step 20 are worse, so the third of them ends the run; step 0 is no candidate."""
    run = trainer(settings(tmp_path / "run", early_stopping=3, steps=500))
    scripted = iter([0.5] * 4 + [1.0] * 4 + [1.5] * 100)  # evaluations have four batches
    run.model.loss = lambda batch: next(scripted)
    result = run.fit()
    assert (result.reason, result.step, result.best_step) == ("early stopping", 80, 20)
    assert checkpoint.load(tmp_path / "run/last").state.step == 80
    assert not same(weights(tmp_path / "run/last"), weights(tmp_path / "run/best"))


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = trainer(settings(tmp_path / "run"))
    real = os.fsync

    def full(descriptor):
        if run.state.step > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run.fit()
    monkeypatch.undo()
    monkeypatch.setattr(plan, "measure_peak_flops", lambda seconds=0.0: 1e9)
    assert checkpoint.load(tmp_path / "run/last").state.step == 20
    assert trainer(settings(tmp_path / "run", resume=True)).fit().reason == "finished"
    trainer(settings(tmp_path / "whole")).fit()
    assert same(weights(tmp_path / "run/last"), weights(tmp_path / "whole/last"))


def test_signal_during_evaluation_saves_and_evaluates_after_resume(tmp_path):
    run = trainer(settings(tmp_path / "run"))
    plain, calls = run.model.loss, []

    def loss(batch):
        calls.append(1)
        if len(calls) == 6:  # the second batch of the evaluation at step 20
            os.kill(os.getpid(), signal.SIGINT)
        return plain(batch)

    run.model.loss = loss
    result = run.fit()
    assert (result.reason, result.step, result.signal) == ("interrupted", 20, signal.SIGINT)
    assert trainer(settings(tmp_path / "run", resume=True)).fit().reason == "finished"
    trainer(settings(tmp_path / "whole")).fit()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_second_signal_kills_at_once(tmp_path):
    """Between the first signal and the end of the step, a second one must not wait."""
    command = [sys.executable, __file__, str(tmp_path / "run"), "30"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert b"stopping after this step" in process.stderr.readline() + process.stderr.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT
    assert time.monotonic() - started < 10  # a step sleeps for 30
    process.stdout.close()
    process.stderr.close()


def test_fit_outside_the_main_thread(tmp_path):
    results = []
    config = settings(tmp_path / "run", steps=3)
    thread = threading.Thread(target=lambda: results.append(trainer(config).fit()))
    thread.start()
    thread.join()
    assert results[0].reason == "finished"


def test_without_validation_data(tmp_path):
    run = trainer(settings(tmp_path / "run", steps=3), data=tokens())
    result = run.fit()
    assert result.val_loss is None
    assert not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/last").exists()
    with pytest.raises(ConfigError, match="no validation data"):
        run.evaluate()


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="block_size 9 is more than the model's max_positions 8"):
        trainer(settings(tmp_path, block_size=9))
    with pytest.raises(LlmcoreError, match="11"):
        trainer(settings(tmp_path), data=np.arange(100) % 12)
    with pytest.raises(DataError, match="has 5 tokens"):
        trainer(settings(tmp_path), data=tokens(5))
    with pytest.raises(ConfigError, match="pair"):
        resolve_data((tokens(), tokens(), tokens()))
    with pytest.raises(ConfigError, match=r"dropout 0\.5 is not that of the model"):
        trainer(settings(tmp_path, dropout=0.5))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        trainer(settings(tmp_path / "file")).fit()


class AdaptableModel(BigramModel):
    """Remembers what it was asked for."""

    def __init__(self, config=CONFIG):
        super().__init__(0, config)
        self.frozen, self.added = [], []

    def freeze(self, patterns):
        self.frozen.append(patterns)

    def add_lora(self, lora):
        self.added.append(lora)


def test_parameters_are_frozen_and_adapters_added_as_asked(tmp_path):
    def make(model, **changes):
        config = settings(tmp_path / "run", **changes)
        return Trainer(model, tokens(), config, train_step=NumpyTrainStep).model

    asked = {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ["q", "up"]}
    wanted = LoraConfig(rank=2, alpha=8.0, targets=("q", "up"))
    model = make(AdaptableModel(), freeze=["embed.*", "*.norm.*"], **asked)
    assert model.frozen == [("embed.*", "*.norm.*")]
    assert model.added == [wanted]
    assert make(AdaptableModel(), lora_rank=3).added == [LoraConfig(rank=3)]
    plain = make(AdaptableModel())
    assert (plain.frozen, plain.added) == ([], [])
    # A resumed run is given a model that has them.
    again = AdaptableModel(CONFIG.replace(lora=wanted))
    assert make(again, **asked).added == []
    with pytest.raises(ConfigError, match="other adapters"):
        make(AdaptableModel(CONFIG.replace(lora=wanted)), lora_rank=4)


def test_accumulation_equals_one_large_batch_in_tokens(tmp_path):
    """Two micro-batches of 3 make one update of 42 targets, and the sampler moves by two."""
    run = trainer(settings(tmp_path / "run", steps=5, accumulation=2))
    run.fit()
    assert run._sampler.step == 10


def slow_step(model, seconds, **named):
    made = NumpyTrainStep(model, **named)
    step = made.step
    made.step = lambda *a, **k: (time.sleep(seconds), step(*a, **k))[1]
    return made


if __name__ == "__main__":  # the process that the tests above kill
    plan.measure_peak_flops = lambda seconds=0.0: 1e9
    make_step = functools.partial(slow_step, seconds=float(sys.argv[2]))
    print("begin", flush=True)
    trainer(settings(sys.argv[1], save_interval=4, resume=True), train_step=make_step).fit()
