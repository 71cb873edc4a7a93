"""A GPU that is not there, tensors on several devices, memory that runs out, and a lost device."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import llmcore
from llmcore import DeviceError, ModelConfig, Transformer, _core
from llmcore.objectives import Batch

needs_cuda = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
emulated = pytest.mark.skipif(_core.cuda_build != "EMULATED", reason="asks the emulated GPU to")

TINY = """
    import numpy as np
    import llmcore
    from llmcore import Batch, DeviceError, GenerationConfig, ModelConfig, OutOfMemory
    from llmcore import TrainStep, Transformer
    sizes = dict(vocab_size=61, bos_id=None, eos_id=None, hidden_size=32, num_heads=2)
    config = ModelConfig.preset("gpt2", **sizes, num_decoder_layers=2, max_positions=512)

    def batch(rows, length):
        ids = np.ones((rows, length), np.int32)
        return Batch(dec_ids=ids, targets=ids.reshape(-1))
"""


def run(code, monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    script = [sys.executable, "-c", textwrap.dedent(TINY) + textwrap.dedent(code)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


@needs_cuda
@pytest.mark.parametrize("name", ["cuda:99", "cuda:2147483647"])
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(DeviceError, match=f"'{name}' does not exist: there (is|are) .* GPU"):
        _core.empty([1], device=name)
    with pytest.raises(DeviceError, match="does not exist"):
        Transformer(ModelConfig.preset("gpt-nano"), device=name)


@pytest.mark.parametrize(
    "name",
    ["cuda:-1", "cuda:x", "cuda:", "cuda: 0", "cuda:+0", "cuda:0x", "cuda:4294967296", "c"],
)
def test_what_names_no_device_is_refused(name):
    with pytest.raises(DeviceError, match=r"must be 'cpu', .* or 'cuda:<index>', got .*; there"):
        _core.empty([1], device=name)


@needs_cuda
def test_tensors_on_several_devices_are_refused(rng):
    def tensor(*shape, dtype="float32", device="cpu"):
        return llmcore.tensor(np.ones(shape, dtype), dtype, device)

    here, there = tensor(4, 4), tensor(4, 4, device="cuda")
    row, ids = tensor(4), tensor(4, dtype="int32")
    calls = {
        "matmul": lambda: _core.matmul(a=there, b=here, c=there),
        "matmul to the CPU": lambda: _core.matmul(a=there, b=there, c=here),
        "optional": lambda: _core.matmul(a=there, b=there, c=there, bias=row),
        "batched_matmul": lambda: _core.batched_matmul(
            a=tensor(1, 4, 4), b=tensor(1, 4, 4), c=tensor(1, 4, 4, device="cuda")
        ),
        "column_sum": lambda: _core.column_sum(x=there, out=row),
        "add": lambda: _core.add(a=there, b=here, y=there),
        "cast": lambda: _core.cast(x=there, y=here),
        "softmax": lambda: _core.softmax_forward(log=False, x=here, y=there),
        "gather": lambda: _core.gather_rows(x=there, index=ids, y=there),
        "activation": lambda: _core.activation_forward(activation="relu", x=here, y=there),
        "adamw": lambda: _core.adamw(
            param=there, grad=here, m=there, v=there, lr=1e-3, beta1=0.9, beta2=0.9, eps=1e-8,
            weight_decay=0.0, step=1,
        ),
        "attention": lambda: _core.AttentionCall(
            op="attention", q=tensor(1, 1, 4, 4, device="cuda"), k=tensor(1, 1, 4, 4),
            v=tensor(1, 1, 4, 4, device="cuda"), scale=1.0,
        ),
        "packed": lambda: _core.PackedWeight(here, "int8").matmul(there, there),
    }  # fmt: skip
    for call in calls.values():
        with pytest.raises(DeviceError, match=r"must be on one device, got (cpu and|cuda:0 and)"):
            call()


@needs_cuda
def test_what_is_the_cpus_refuses_a_gpus_tensors():
    there = llmcore.tensor(np.zeros(8, np.float32), device="cuda")
    options = _core.GenerationOptions()
    with pytest.raises(DeviceError, match=r"process_logits: .* got cpu and cuda:0"):
        _core.process_logits(options=options, ids=[1], prompt_length=1, logits=there)
    with pytest.raises(DeviceError, match="measure_read"):
        _core.measure_read(x=there, seconds=0.01)
    config = ModelConfig.preset("gpt-nano")
    model = Transformer(config, device="cuda")
    out = llmcore.tensor(np.zeros((1, 2, config.vocab_size), np.float32), device="cpu")
    with pytest.raises(DeviceError, match=r"model: .* got cuda:0 and cpu"):
        model._core.logits(Batch(dec_ids=[[1, 2]], targets=[0, 0]), out)


@emulated
def test_a_model_is_usable_after_memory_ran_out(monkeypatch):
    """In a step that is too large, asked for twice, and in generation."""
    code = """
        model = Transformer(config, device="cuda", seed=1)
        step = TrainStep(model, lr=1e-2)
        small = batch(2, 8)
        losses = [step(small).loss]
        for size in (64, 64, 400):
            try:
                step(batch(size, 512)).loss
            except OutOfMemory as error:
                assert "use a smaller batch" in str(error), error
            else:
                raise AssertionError("there was memory enough")
        losses += [step(small).loss for _ in range(4)]
        assert len(model.generate([[1, 2, 3]], GenerationConfig(max_new_tokens=4))[0].ids) == 4
        fresh = Transformer(config, device="cpu", seed=1)
        step = TrainStep(fresh, lr=1e-2)
        wanted = [step(small).loss for _ in range(5)]
        assert np.allclose(losses, wanted, rtol=1e-4), (losses, wanted)
        print("done")
    """
    assert run(code, monkeypatch, LLMCORE_EMULATED_MEMORY=192) == ["done"]


@emulated
@pytest.mark.parametrize("kernel", [1, 30, 150])
def test_a_lost_device_is_told_by_every_call_and_by_no_destructor(monkeypatch, kernel):
    code = """
        def work():
            model = Transformer(config, device="cuda")
            step = TrainStep(model, lr=1e-2)
            held = [step(batch(2, 8)) for _ in range(9)]
            return held[-1].loss

        for _ in range(2):
            try:
                work()
            except DeviceError as error:
                print(error)
        try:
            llmcore.tensor(np.ones(3), device="cuda").numpy()
        except DeviceError as error:
            print(error)
    """
    told = run(code, monkeypatch, LLMCORE_EMULATED_FAILURE=kernel)
    assert len(told) == 3
    for line in told:
        assert "an illegal memory access was encountered; this process can use the GPU no" in line


@emulated
def test_a_gpu_with_too_little_shared_memory_is_refused(monkeypatch):
    code = """
        print(llmcore.cuda_available())
        try:
            Transformer(config, device="cuda")
        except DeviceError as error:
            print(error)
    """
    available, reason = run(code, monkeypatch, LLMCORE_EMULATED_SHARED=99)
    assert available == "False"
    assert "has 99 KiB of shared memory for a block, 160 KiB are needed; hide it by" in reason


@emulated
def test_kernels_of_an_older_architecture_do_not_overlap(monkeypatch):
    """Compiled anew for this one, they still have no instruction to wait by."""
    code = """
        step = TrainStep(Transformer(config, device="cuda"), lr=1e-2)
        print([step(batch(2, 8)).loss > 0 for _ in range(3)])
    """
    assert run(code, monkeypatch, LLMCORE_EMULATED_PTX=80) == ["[True, True, True]"]


@needs_cuda
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_refused(monkeypatch):
    code = """
        import os
        x = llmcore.tensor(np.ones(3, np.float32), device="cuda")
        child = os.fork()
        if child == 0:
            try:
                x.numpy()
            except DeviceError as error:
                os._exit(7 if "forked" in str(error) and "'spawn'" in str(error) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), x.numpy().sum())
    """
    assert run(code, monkeypatch) == ["7 3.0"]


@needs_cuda
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_lets_go_of_what_its_parent_has(monkeypatch):
    """As garbage collection may at any time: no call of CUDA, which might never return."""
    code = """
        import gc, os
        model = Transformer(config, device="cuda")
        step = TrainStep(model, lr=1e-2)
        reports = [step(batch(2, 8)) for _ in range(3)]
        model.generate([[1, 2, 3]], GenerationConfig(max_new_tokens=9))
        child = os.fork()
        if child == 0:
            try:
                step(batch(2, 8))
            except DeviceError as error:
                assert "forked" in str(error), error
            else:
                os._exit(8)
            del model, step, reports
            gc.collect()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), reports[-1].loss > 0)
    """
    assert run(code, monkeypatch) == ["7 True"]
