"""The rules of the design that a program can check: layering, sizes, symbols, dependencies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmcore
from llmcore import _core

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PYTHON = ROOT / "python"

pytestmark = [
    pytest.mark.cpu("sources and symbols"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="no sources beside the tests"),
]


def sources(*patterns, under=CSRC):
    return sorted(path for pattern in patterns for path in under.rglob(pattern))


def everything():
    ours = [*sources("*.h", "*.cpp", "*.cu", "*.cuh"), *sources("*.py", "*.pyi", under=PYTHON)]
    tests = sources("*.py", under=ROOT / "tests")
    benchmarks = sources("*.py", under=ROOT / "benchmarks")
    return [*ours, *tests, *benchmarks]


def without_comments(path):
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def name(path):
    return str(path.relative_to(ROOT))


def is_kernel(path):
    return path.name.endswith("_cpu.cpp") and path.name != "backend_cpu.cpp"


def is_cuda(path):
    """What nvcc alone compiles: the CUDA files of any folder, and csrc/cuda."""
    return path.stem.endswith("_cuda") or path.parent == CSRC / "cuda"


def is_cuda_kernel(path):
    return path.match("csrc/ops/*_cuda.cu") and path.name != "backend_cuda.cu"


# ---------------------------------------------------------------------------- who includes whom

# Each folder sees itself and those to its left.
LAYERS = ["core", "simd", "cuda", "ops", "nn", "generate", "distributed", "bindings"]


def includes(path):
    return re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)


def test_includes_point_down_the_layers():
    wrong = []
    for path in sources("*.h", "*.cpp", "*.cu", "*.cuh"):
        layer = path.relative_to(CSRC).parts[0]
        for included in includes(path):
            below = included.split("/")[0]
            if "/" not in included or not (CSRC / included).is_file():
                wrong.append(f"{name(path)}: '{included}' is no path below csrc")
            elif below == "cuda" and not is_cuda(path):
                wrong.append(f"{name(path)}: {included} is for the CUDA files alone")
            elif layer == "cuda" and below == "simd":
                wrong.append(f"{name(path)}: {included} is for the CPU alone")
            elif LAYERS.index(below) > LAYERS.index(layer) and below != "cuda":
                wrong.append(f"{name(path)}: {layer} must not include {included}")
    assert not wrong, "\n".join(wrong)


def per_isa_headers():
    """Headers compiled once per instruction set: those that need LLMCORE_ISA, as simd/ does."""
    return [path for path in sources("*.h") if "LLMCORE_ISA" in without_comments(path)]


def test_vectors_are_for_the_kernels_alone():
    per_isa = {str(path.relative_to(CSRC)) for path in per_isa_headers()}
    allowed = {name(path) for path in [*per_isa_headers(), *filter(is_kernel, sources("*.cpp"))]}
    wrong = [
        f"{name(path)} includes {included}"
        for path in sources("*.h", "*.cpp", "*.cu")
        for included in includes(path)
        if included in per_isa and name(path) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_include_no_standard_library():
    """Its templates would leave weak symbols compiled for AVX-512 behind; C's headers have none."""
    allowed = {"cstdint", "cstddef"}
    wrong = [
        f"{name(path)} includes <{header}>"
        for path in [*filter(is_kernel, sources("*.cpp")), *per_isa_headers()]
        for header in re.findall(r"^#include <([^>]+)>", path.read_text(), re.MULTILINE)
        if header not in allowed and not header.endswith(".h")
    ]
    assert not wrong, "\n".join(wrong)


def test_intrinsics_live_in_simd_alone():
    wrong = [
        f"{name(path)} includes <{header}>"
        for path in sources("*.h", "*.cpp")
        if path.relative_to(CSRC).parts[0] != "simd"
        for header in re.findall(r"^\s*#\s*include <([^>]+)>", path.read_text(), re.MULTILINE)
        if header.endswith("intrin.h") or header == "arm_neon.h"
    ]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- what files hold


def test_no_file_is_longer_than_600_lines():
    written = [path for path in everything() if path.suffix != ".pyi"]  # stubs are generated
    lengths = {name(path): len(path.read_text().splitlines()) for path in written}
    too_long = {path: lines for path, lines in lengths.items() if lines > 600}
    assert not too_long, too_long


def test_every_file_says_first_what_lives_there():
    wrong = []
    for path in everything():
        text = path.read_text()
        opening = ("//", "/*") if path.suffix in (".h", ".cpp", ".cu", ".cuh") else ('"""', "#")
        if path.suffix != ".pyi" and text and not text.startswith(opening):
            wrong.append(name(path))
    assert not wrong, wrong


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    wrong = [name(path) for path in everything() if marks.search(path.read_text())]
    assert not wrong, wrong


def test_cuda_stays_in_the_cuda_files():
    cuda = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif).*CUDA|#include <cu", re.MULTILINE)
    wrong = [
        name(path)
        for path in sources("*.h", "*.cpp", "*.cu", "*.cuh")
        if not is_cuda(path) and cuda.search(without_comments(path))
    ]
    assert not wrong, wrong


# What CUDA files must not hold, and the one that may.
CUDA_RULES = {
    r"\basm\b": ("inline PTX, which the emulation cannot run", "cuda/ptx.h"),
    r"<<<": ("a launch that does not check its errors", ""),
    r"\batomic(Add|CAS|Exch|Max|Min|Or|And|Xor)\b": (
        "atomics, whose order is not the same",
        "cuda/integers.h",
    ),
    r"\b__(expf|logf|sinf|cosf|tanf|powf|fdividef)\b": ("a fast-math intrinsic", ""),
    r"#include <(cub|thrust|cooperative_groups|cuda_bf16|cuda_fp16)\b": (
        "what has no emulation",
        "",
    ),
}


def test_cuda_files_keep_to_what_can_be_emulated():
    wrong = [
        f"{name(path)}: {what}"
        for path in filter(is_cuda, sources("*.h", "*.cu", "*.cuh"))
        for pattern, (what, where) in CUDA_RULES.items()
        if path != CSRC / where and re.search(pattern, without_comments(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_environment_is_read_in_settings_alone():
    wrong = [
        name(path)
        for path in sources("*.h", "*.cpp", "*.cu")
        if path.name != "settings.cpp" and "getenv" in without_comments(path)
    ]
    wrong += [
        f"{name(path)}: {variable}"
        for path in sources("*.py", under=PYTHON)
        for variable in re.findall(r"environ\S*?(LLMCORE_\w+)", path.read_text())
    ]
    assert not wrong, wrong


def test_bindings_leave_loops_over_elements_to_the_core():
    wrong = [
        name(path)
        for path in (CSRC / "bindings").glob("*.cpp")
        if re.search(r"parallel_(for|chunks|run)\(", without_comments(path))
    ]
    assert not wrong, wrong


def test_kernels_do_not_allocate():
    allocation = re.compile(
        r"\b(malloc|calloc|aligned_alloc|new\s+\w|std::vector|mmap|cudaMalloc\w*)\b"
    )
    kernels = [*filter(is_kernel, sources("*.cpp")), *filter(is_cuda_kernel, sources("*.cu"))]
    wrong = [name(path) for path in kernels if allocation.search(without_comments(path))]
    assert not wrong, wrong


def test_cuda_kernels_do_not_wait():
    """A step is one stream of launches: who waits in the middle of it leaves the GPU idle."""
    waiting = re.compile(r"\bcuda(Device|Stream|Event)Synchronize\b|\bcudaMemcpy\b")
    wrong = [
        name(path)
        for path in filter(is_cuda_kernel, sources("*.cu"))
        if waiting.search(without_comments(path))
    ]
    assert not wrong, wrong


def test_cuda_kernels_take_their_turn():
    """One that reads what the kernel ahead has yet to write would be wrong on some days."""
    start = re.compile(r"__global__[^;{]*\{\s*([^;]*;)")
    prefetches = re.compile(r"(__global__[^;{]*\{)\s*(?:prefetch\w*(?:<[^;]*>)?\([^;]*;\s*)+")
    kernels, wrong = 0, []
    for path in filter(is_cuda, sources("*.cu")):
        code = prefetches.sub(r"\1", without_comments(path))
        for statement in start.findall(code):
            kernels += 1
            if statement != "take_turn();":
                wrong.append(f"{name(path)}: {statement}")
    assert kernels > 50
    assert not wrong, wrong


def test_kernel_families_are_vertical_slices():
    """A kernel has its contract and its checks beside it."""
    wrong = [
        name(path)
        for path in [*filter(is_kernel, sources("*.cpp")), *filter(is_cuda_kernel, sources("*.cu"))]
        if path.name not in ("table_cpu.cpp", "table_cuda.cu")
        and not any(
            path.name.startswith(header.stem) and header.with_suffix(".cpp").is_file()
            for header in path.parent.glob("*.h")
        )
    ]
    assert not wrong, wrong


# ---------------------------------------------------------------------------- what is built


def tool(program):
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_sanitized(build):
    """Sanitizers add symbols of their own."""
    return re.search(r"^LLMCORE_SANITIZE:\w+=\w", (build / "CMakeCache.txt").read_text(), re.M)


def kernel_objects():
    """What the build folders at hand hold, one object per kernel file and instruction set."""
    pattern = "build/*/CMakeFiles/llmcore_*.dir/csrc/ops/*_cpu.cpp.o"
    objects = [
        path
        for path in ROOT.glob(pattern)
        if path.parts[-4] != "llmcore_core.dir" and not is_sanitized(path.parents[4])
    ]
    if not objects:
        pytest.skip("no build folder with object files here")
    return objects


def test_kernels_leave_no_weak_symbols():
    """A weak symbol compiled for AVX-512 could be the one the linker keeps for everybody.

    Nor do they define anything outside their instruction set's own namespace.
    """
    nm = tool("nm")
    wrong = []
    for path in kernel_objects():
        isa = path.parts[-4].removeprefix("llmcore_").removesuffix(".dir")
        for line in output(nm, "-C", str(path)).splitlines():
            kind, symbol = line[17:18], line[19:]
            if kind in "Uvwtrdbna":  # needed from elsewhere, or local
                continue
            if kind not in "TDRB" or not symbol.startswith(f"llmcore::{isa}::"):
                wrong.append(f"{path.relative_to(ROOT)}: {kind} {symbol}")
    assert not wrong, "\n".join(wrong)


def test_no_blas_openmp_or_torch_is_linked():
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output(tool("readelf"), "-d", _core.__file__))
    allowed = r"lib(stdc\+\+|m|gcc_s|c|pthread|dl|rt|asan|ubsan|tsan)\.so.*|ld-linux.*"
    assert needed
    assert not [library for library in needed if not re.fullmatch(allowed, library)], needed


def test_only_the_module_is_exported():
    """Everything else is hidden, so that two libraries in one process never mix."""
    lines = output(tool("nm"), "-D", "--defined-only", "-C", _core.__file__).splitlines()
    ours = [line[19:] for line in lines if "llmcore" in line or line[19:].startswith("cu")]
    assert not ours, ours


# ---------------------------------------------------------------------------- what is imported


def python(code):
    path = os.pathsep.join(
        [str(Path(llmcore.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    return output_of(code, PYTHONPATH=path)


def output_of(code, **variables):
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, check=True,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return result.stdout.strip()


HEAVY = {
    "torch", "transformers", "tokenizers", "safetensors", "rich", "typer", "pyarrow", "matplotlib",
    "huggingface_hub", "mpi4py",
}  # fmt: skip


def test_import_brings_no_heavy_package():
    loaded = python("import sys, llmcore; print(*{name.split('.')[0] for name in sys.modules})")
    assert "llmcore" in loaded.split()
    assert not HEAVY & set(loaded.split())


def test_operations_need_numpy_alone():
    loaded = python(
        "import sys, numpy, llmcore; llmcore.ops.rms_norm(numpy.ones((2, 2), numpy.float32));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not HEAVY & set(loaded.split())


def test_opening_a_model_imports_no_more_than_it_needs():
    loaded = python(
        "import sys; from llmcore import Transformer, checkpoint; print(*sys.modules)"
    ).split()
    assert "llmcore.checkpoint" in loaded
    unneeded = ("llmcore.ops", "llmcore.tokenizer", "llmcore.training", "llmcore.cli")
    assert [name for name in loaded if name.startswith(unneeded)] == []


def test_libraries_of_other_packages_are_found_without_importing_them():
    """Those of a package `nvidia` somewhere on the path, which need not lie beside llmcore."""
    code = """
import pathlib, sys, tempfile
from llmcore.libraries import library_folders
before = set(library_folders())
with tempfile.TemporaryDirectory() as other:
    for part in ("nvidia/cu13/lib", "nvidia/cudnn/include", "nvidia/nccl/lib"):
        pathlib.Path(other, part).mkdir(parents=True)
    sys.path.append(other)
    found = [pathlib.Path(folder) for folder in library_folders() if folder not in before]
    print(*[folder.relative_to(other) for folder in found], "nvidia" in sys.modules)
"""
    assert python(code).split() == ["nvidia/cu13/lib", "nvidia/nccl/lib", "False"]


def test_import_is_quick():
    """`import llmcore` takes at most 100 ms more than `import numpy`: the best of several tries."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    numpy, ours = (
        min(float(python(code.format(m))) for _ in range(7)) for m in ("numpy", "llmcore")
    )
    assert ours <= numpy + 0.1, f"llmcore {ours * 1e3:.0f} ms, numpy {numpy * 1e3:.0f} ms"


def test_every_public_name_is_there_and_documented():
    for module in (llmcore, llmcore.ops):
        for public in module.__all__:
            thing = getattr(module, public)
            if callable(thing):
                assert thing.__doc__, public
