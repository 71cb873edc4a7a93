"""The Arm kernels, cross-compiled and run under emulation: tests/cpp against plain loops and x86.

Needs aarch64-linux-gnu-g++ and qemu-aarch64 (static or not); skipped where they are not installed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None or platform.machine() != "x86_64",
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 on x86-64",
)

# Warnings and language as in CMakeLists.txt; less optimised, so that the test is short.
FLAGS = [
    "-std=gnu++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-psabi",
    "-Wno-missing-field-initializers", "-fno-math-errno",
]  # fmt: skip
KERNEL_FLAGS = ["-DLLMCORE_ISA=neon", "-march=armv8-a", "-ffp-contract=fast", "-fno-trapping-math"]
# The plain loops are the yardstick: every operation of theirs rounds.
CHECK_FLAGS = ["-ffp-contract=off", f"-I{ROOT / 'tests' / 'cpp'}"]

ROWS, TOKENS, VOCABULARY = 3, 11, 61
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_decoder_layers": 2, "num_heads": 4,
    "ffn_size": 52, "max_positions": 16,
}  # fmt: skip
MODELS = {
    "gpt": {
        **SIZES, "embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.2,
        "ffn_dropout": 0.2,
    },
    "llama": {
        **SIZES, "num_kv_heads": 2, "norm": "rms", "positions": "rope", "sliding_window": 5,
        "activation": "silu", "gated_ffn": True, "attention_bias": False,
        "attention_out_bias": False, "ffn_bias": False, "norm_bias": False,
        "tie_embeddings": False,
    },
}  # fmt: skip


def kernel_sources() -> list[Path]:
    return [p for p in SOURCES.glob("ops/*_cpu.cpp") if p.name != "backend_cpu.cpp"]


def plain_sources() -> list[Path]:
    folders = ("core", "ops", "nn", "generate")
    everything = [p for folder in folders for p in SOURCES.glob(f"{folder}/*.cpp")]
    return [p for p in everything if p not in kernel_sources() and p.name != "backend_cuda.cpp"]


@pytest.fixture(scope="session")
def check_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of tests/cpp for Arm."""
    folder = tmp_path_factory.mktemp("neon")

    def build(*arguments: object) -> None:
        command = [str(COMPILER), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    def compiled(job: tuple[Path, list[str]]) -> Path:
        source, flags = job
        target = folder / f"{source.parent.name}-{source.stem}.o"
        build(*FLAGS, *flags, f"-I{SOURCES}", "-c", source, "-o", target)
        return target

    jobs = [
        *((source, KERNEL_FLAGS) for source in kernel_sources()),
        *((source, []) for source in plain_sources()),
        *((source, CHECK_FLAGS) for source in (ROOT / "tests" / "cpp").glob("*.cpp")),
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, jobs))
    program = folder / "check_kernels"
    # Static, so that the emulator needs no Arm libraries at run time.
    build("-static", "-pthread", *objects, "-o", program)
    return program


def run(program: Path, *arguments: object, threads: int = 2) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LLMCORE_NUM_THREADS": str(threads), "LLMCORE_CPU_ISA": ""}
    return subprocess.run(
        [str(EMULATOR), str(program), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip


def test_kernels_agree_with_plain_loops(check_kernels: Path) -> None:
    result = run(check_kernels)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "neon: 0 failures" in result.stdout


# Runs where the kernels are chosen anew: once per process. Prints what the Arm program writes.
STEP = """
import json, sys
import numpy as np
from llmcore import ModelConfig, TrainStep, Transformer
from llmcore.objectives import Batch

config, source, target = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
model = Transformer(ModelConfig(**config))
data = np.load(source)
for parameter, start in zip(model.parameters().values(), data["starts"]):
    array = parameter.numpy()
    array[...] = data["parameters"][start : start + array.size].reshape(array.shape)
batch = Batch(dec_ids=data["ids"], targets=data["targets"].ravel(),
              weights=data["weights"].ravel(), label_smoothing=0.1)
step = TrainStep(model, lr=0.01, betas=(0.9, 0.99), eps=0.1, weight_decay=0.1, max_grad_norm=1.0,
                 dropout_seed=7)
result = step(batch)
flat = lambda views: np.concatenate([view.numpy().ravel() for view in views.values()])
np.savez(target, loss=result.loss, norm=result.grad_norm, gradients=flat(model.gradients()),
         parameters=flat(model.parameters()))
"""


def generic_step(name: str, data: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The same training step by the package's generic x86 kernels."""
    source, target = folder / "in.npz", folder / "out.npz"
    np.savez(source, **data)
    environment = os.environ | {"LLMCORE_CPU_ISA": "generic"}
    arguments = [json.dumps(MODELS[name]), str(source), str(target)]
    subprocess.run([sys.executable, "-c", STEP, *arguments], env=environment, check=True)
    with np.load(target) as results:
        return dict(results)


def neon_step(name: str, data: dict[str, np.ndarray], program: Path) -> dict[str, np.ndarray]:
    source, target = program.parent / f"{name}.in", program.parent / f"{name}.out"
    with source.open("wb") as file:
        for key in ("ids", "targets", "weights", "parameters"):
            data[key].tofile(file)
    result = run(program, "train", name, source, target)
    assert result.returncode == 0, result.stdout + result.stderr
    loss, norm = np.fromfile(target, np.float64, 2)
    gradients, parameters = np.fromfile(target, np.float32, offset=16).reshape(2, -1)
    return {"loss": loss, "norm": norm, "gradients": gradients, "parameters": parameters}


@pytest.mark.parametrize("name", MODELS)
def test_training_step_equals_x86(
    name: str, rng: np.random.Generator, check_kernels: Path, tmp_path: Path
) -> None:
    """Both are fp32, so both are as far from the truth as rounding takes them.

    How far that is, x86 says itself: by how much its results move when every weight is moved by a
    unit in the last place, up or down at random. Every intermediate result of the step is rounded,
    not only the weights: hence four times as much is allowed.
    """
    from llmcore import ModelConfig
    from llmcore.parameters import parameter_shapes

    sizes = [int(np.prod(s)) for s in parameter_shapes(ModelConfig(**MODELS[name])).values()]
    data = {
        "ids": rng.integers(0, VOCABULARY, (ROWS, TOKENS), np.int32),
        "targets": rng.integers(0, VOCABULARY, (ROWS, TOKENS), np.int32),
        "weights": rng.uniform(0.5, 2, (ROWS, TOKENS)).astype(np.float32),
        "parameters": (0.3 * rng.standard_normal(sum(sizes))).astype(np.float32),
        "starts": np.cumsum([0, *sizes[:-1]]),
    }
    expected = generic_step(name, data, tmp_path)
    rounded = []
    for _ in range(3):
        up_or_down = rng.choice([-np.inf, np.inf], sum(sizes)).astype(np.float32)
        moved = np.nextafter(data["parameters"], up_or_down)
        rounded.append(generic_step(name, {**data, "parameters": moved}, tmp_path))
    actual = neon_step(name, data, check_kernels)
    for key, want in expected.items():
        allowed = 4 * max(np.abs(one[key] - want).max() for one in rounded)
        assert np.abs(actual[key] - want).max() <= allowed, key
        assert allowed <= 1e-3 * np.abs(want).max(), f"{key}: the yardstick is too long"
