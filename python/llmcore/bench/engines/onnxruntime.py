"""ONNX Runtime among the contestants: one graph an operation, weights as constants of the graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.bench.operations import Operations
from llmcore.bench.worker import Built, Run, timed

Arrays = dict[str, NDArray[Any]]

# The set of operators that has Attention (ONNX 1.18), and the file format that came with it.
_OPSET, _IR_VERSION = 23, 11


def operations(workload: dict[str, Any]) -> Built:
    """Return those operations of the workload that are operators of ONNX."""
    import onnxruntime

    runs = {
        operation.name: _CALLS[operation.kind](*operation.sizes)
        for operation in Operations(**workload).operations()
        if operation.kind in _CALLS
    }
    return Built(runs, onnxruntime.__version__)


def _run(operator: str, inputs: Arrays, constants: Arrays, **attributes: Any) -> Run:
    """Return what calls a graph of one operator; constants come after the inputs."""
    import onnxruntime
    from onnx import helper, numpy_helper

    names = [*inputs, *constants]
    node = helper.make_node(operator, names, ["y"], **attributes)
    float32 = 1  # TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in inputs.items()
        ],
        [helper.make_tensor_value_info("y", float32, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return timed(lambda: session.run(None, inputs))


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def _y(m: int, k: int, n: int) -> Run:
    return _run("Gemm", {"x": _random(m, k)}, {"w": _random(n, k)}, transB=1)


def _dx(m: int, k: int, n: int) -> Run:
    return _run("Gemm", {"dy": _random(m, n)}, {"w": _random(n, k)})


def _dw(m: int, k: int, n: int) -> Run:
    inputs = {"dy": _random(m, n), "x": _random(m, k), "dw": _random(n, k)}
    return _run("Gemm", inputs, {}, transA=1)


def _attention(b: int, h: int, t: int, d: int) -> Run:
    inputs = {name: _random(b, h, t, d) for name in ("q", "k", "v")}
    return _run("Attention", inputs, {}, is_causal=1)


def _layer_norm(rows: int, width: int) -> Run:
    constants = {"weight": _random(width), "bias": _random(width)}
    return _run("LayerNormalization", {"x": _random(rows, width)}, constants, axis=-1)


_CALLS: dict[str, Callable[..., Run]] = {
    "y": _y,
    "dx": _dx,
    "dw": _dw,
    "attention": _attention,
    "layer_norm": _layer_norm,
}
