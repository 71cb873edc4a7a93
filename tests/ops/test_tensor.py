"""llmcore.Tensor: construction, conversion, and memory shared with NumPy and DLPack libraries."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import llmcore
from llmcore import _core

pytestmark = pytest.mark.cpu("memory that is shared with NumPy")

NUMPY_DTYPES = ["float32", "float16", "int32", "int64", "int8", "bool"]
SHAPES = [(), (1,), (7,), (3, 5), (0,), (2, 0, 3), (1, 2, 3, 4, 2)]


def filled(rng, shape, dtype):
    return (rng.standard_normal(shape) * 3).astype(dtype)


def bfloat16_bits(array):
    """The bits of float32 values rounded to bfloat16, ties to even, the long way."""
    wide = np.asarray(array, np.float32)
    bits = wide.view(np.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return np.where(np.isnan(wide), high | 0x40, high + up).astype(np.uint16)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_there_and_back(rng, shape, dtype):
    array = np.array(filled(rng, shape, dtype))
    tensor = llmcore.tensor(array)
    assert (tensor.shape, tensor.dtype, tensor.device) == (shape, dtype, "cpu")
    assert (tensor.ndim, tensor.size, tensor.nbytes) == (array.ndim, array.size, array.nbytes)
    for back in (tensor.numpy(), np.asarray(tensor), np.from_dlpack(tensor)):
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
        assert back.shape == shape


def test_tensor_copies_and_views_share(rng):
    array = filled(rng, (3, 4), np.float32)
    tensor = llmcore.tensor(array)
    array[:] = 0
    assert tensor.numpy().any()
    tensor.numpy()[1, 2] = 42
    assert np.asarray(tensor)[1, 2] == np.from_dlpack(tensor)[1, 2] == 42
    assert tensor.reshape([12]).numpy()[6] == 42


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "int8", "bool"])
def test_copied_and_pickled(rng, dtype, again):
    tensor = llmcore.tensor(filled(rng, (2, 3), "float32")).to(dtype=dtype)
    back = again(tensor)
    assert (back.shape, back.dtype, back.device) == ((2, 3), dtype, "cpu")
    np.testing.assert_array_equal(back.numpy(), tensor.numpy())
    assert not np.shares_memory(back.numpy(), tensor.numpy())


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_from_dlpack_shares_memory(dtype):
    array = np.zeros((2, 3), dtype)
    tensor = llmcore.from_dlpack(array)
    array[1, 2] = 1
    assert tensor.numpy()[1, 2] == 1


def test_one_element_is_a_number():
    loss, count = llmcore.tensor(2.5), llmcore.tensor([3])
    assert (float(loss), int(loss), loss.item(), round(float(count), 1)) == (2.5, 2, 2.5, 3.0)
    assert (f"{loss:.3f}", f"{loss}", f"{count:03d}", f"{count}") == (
        "2.500",
        "2.5",
        "003",
        str(count),
    )
    assert [*"abcd"][count] == "d"
    assert range(5)[count:] == range(3, 5)
    for number in (0.0, -0.0, 1e-40, np.nan, [0], [[7]]):
        assert bool(llmcore.tensor(number)) == bool(np.asarray(number).item())


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (bool, ValueError, "one element, got shape [2]"),
        (float, ValueError, "one element, got shape [2]"),
        (lambda x: f"{x:.2f}", ValueError, "one element, got shape [2]"),
        (lambda x: bool(llmcore.zeros([0])), ValueError, "one element, got shape [0]"),
        (lambda x: [1][llmcore.tensor(0.0)], TypeError, "of integers is an index, got float32"),
        (lambda x: f"{llmcore.tensor(1.5):d}", ValueError, "'d'"),
    ],
)
def test_several_elements_are_none(use, error, words):
    with pytest.raises(error) as raised:
        use(llmcore.tensor([1.0, 2.0]))
    assert words in str(raised.value)


def test_strided_arrays_are_read_in_order(rng):
    array = filled(rng, (4, 6, 5), np.float32)
    for view in (
        array.T, array[::2, 1:], array[:, ::-1], array[:, 2], np.broadcast_to(array[:1], (4, 6, 5)),
        array[1:1], array.transpose(1, 0, 2)[::3], np.asfortranarray(array),
    ):  # fmt: skip
        assert np.array_equal(llmcore.tensor(view).numpy(), view)
        if view.flags.writeable:
            assert np.array_equal(llmcore.from_dlpack(view).numpy(), view)


def test_foreign_byte_order_and_alignment(rng):
    array = filled(rng, (3, 5), np.float32)
    assert np.array_equal(llmcore.tensor(array.astype(">f4")).numpy(), array)
    raw = np.zeros(array.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(3, 5)
    shifted[:] = array
    assert np.array_equal(llmcore.tensor(shifted).numpy(), array)


def test_memory_lives_as_long_as_a_view(rng):
    array = filled(rng, (64, 64), np.float32)
    expected = array.copy()
    tensor = _core.as_tensor(array)
    view = tensor.reshape([4096]).numpy()
    del array, tensor
    gc.collect()
    assert np.array_equal(view, expected.ravel())


def test_memory_is_released_with_the_last_view():
    class Array(np.ndarray):
        """An array that can be watched."""

    array = np.zeros(8, np.float32).view(Array)
    alive = weakref.ref(array)
    tensor = _core.as_tensor(array)
    exported = tensor.__dlpack__()
    del array
    gc.collect()
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is not None
    del exported
    gc.collect()
    assert alive() is None


def test_buffers_are_counted_and_released():
    before = llmcore.memory_stats()["current_bytes"]
    tensor = llmcore.zeros([1 << 20])
    view = tensor.numpy()
    del tensor
    assert llmcore.memory_stats()["current_bytes"] >= before + (4 << 20)
    del view
    assert llmcore.memory_stats()["current_bytes"] == before


class TestDLPack:
    """The protocol's keyword arguments, both generations of capsules."""

    def test_capsule_generations(self):
        tensor = llmcore.zeros([3])
        assert '"dltensor"' in repr(tensor.__dlpack__())
        assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
        assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 0)))
        assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(2, 3)))
        assert tensor.__dlpack_device__() == (1, 0)

    @pytest.mark.parametrize("version", [None, (1, 0)])
    def test_either_generation_is_taken(self, version):
        class Producer:
            """Speaks one generation alone."""

            def __init__(self, tensor):
                self.tensor = tensor

            def __dlpack__(self, **kwargs):
                if version is None and kwargs:
                    raise TypeError("unexpected keyword argument 'max_version'")
                return self.tensor.__dlpack__(max_version=version)

        tensor = llmcore.zeros([2, 3])
        taken = llmcore.from_dlpack(Producer(tensor))
        tensor.numpy()[1, 1] = 5
        assert taken.numpy()[1, 1] == 5

    def test_copy_on_request(self):
        tensor = llmcore.zeros([3])
        for version in (None, (1, 0)):

            class Producer:
                """Hands a capsule on."""

                def __dlpack__(self, **_):
                    return tensor.__dlpack__(max_version=version, copy=True)  # noqa: B023

            copied = llmcore.from_dlpack(Producer())
            copied.numpy()[:] = 1
        assert not tensor.numpy().any()

    def test_a_capsule_serves_once(self):
        class Producer:
            """Gives the same capsule twice."""

            capsule = llmcore.zeros([3]).__dlpack__()

            def __dlpack__(self, **_):
                return self.capsule

        producer = Producer()
        llmcore.from_dlpack(producer)
        with pytest.raises(TypeError, match="already used"):
            llmcore.from_dlpack(producer)

    @pytest.mark.parametrize(
        "kwargs", [{"stream": 1}, {"dl_device": (2, 0)}, {"dl_device": (1, 1)}]
    )
    def test_what_the_cpu_cannot_do(self, kwargs):
        with pytest.raises(BufferError):
            llmcore.zeros([3]).__dlpack__(**kwargs)

    def test_the_cpu_may_be_asked_for(self):
        llmcore.zeros([3]).__dlpack__(dl_device=(1, 0), stream=None, copy=False)


def test_read_only_arrays_stay_so(rng):
    array = filled(rng, 5, np.float32)
    array.flags.writeable = False
    tensor = _core.as_tensor(array)
    assert np.shares_memory(tensor.numpy(), array)
    assert not tensor.numpy().flags.writeable
    assert not tensor.reshape([5, 1]).numpy().flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()
    taken = llmcore.from_dlpack(tensor)  # DLPack 1.0 carries the flag
    assert not taken.numpy().flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        _core.copy(source=llmcore.zeros([5]), target=tensor)
    with pytest.raises(ValueError, match="read-only"):
        _core.in_place_tensor(tensor)
    assert llmcore.tensor(array).numpy().flags.writeable  # a copy is the caller's own


def test_pytorch_both_ways(rng):
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "bfloat16", "float16", "int32", "int64", "int8", "bool"):
        theirs = torch.from_numpy(filled(rng, (3, 4), np.float32)).to(getattr(torch, dtype))
        ours = llmcore.from_dlpack(theirs)
        assert (ours.dtype, ours.shape) == (dtype, (3, 4))
        back = torch.from_dlpack(ours)
        assert back.dtype == theirs.dtype
        assert torch.equal(back, theirs)
        back[1, 1] = 1
        assert theirs[1, 1] == 1
    strided = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    assert np.array_equal(llmcore.from_dlpack(strided).numpy(), strided.numpy())
    assert llmcore.from_dlpack(torch.empty(0, 3)).shape == (0, 3)
    assert llmcore.tensor(torch.ones(2, dtype=torch.float64)).dtype == "float32"
    assert llmcore.tensor(torch.ones(2, dtype=torch.uint8)).dtype == "int32"


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(5).astype(ml_dtypes.bfloat16)
    assert llmcore.tensor(array).dtype == "bfloat16"
    assert np.array_equal(llmcore.tensor(array).numpy(), np.arange(5, dtype=np.float32))


class TestConversion:
    """Exact for every bit pattern."""

    ALL = np.arange(1 << 16, dtype=np.uint32)

    def test_every_float16_widens_exactly(self):
        half = self.ALL.astype(np.uint16).view(np.float16)
        wide = llmcore.tensor(half).to(dtype="float32").numpy()
        assert np.array_equal(wide.view(np.uint32), half.astype(np.float32).view(np.uint32))

    def test_every_bfloat16_widens_exactly_and_comes_back(self):
        wide = (self.ALL << 16).view(np.float32)
        tensor = llmcore.tensor(wide, "bfloat16")
        back = tensor.numpy()
        quiet = np.where(np.isnan(wide), (self.ALL << 16) | 0x400000, self.ALL << 16)
        assert np.array_equal(back.view(np.uint32), quiet)

    def around_every_value(self):
        """Every bfloat16, half-way to the next, and one bit to either side of both."""
        exact = (self.ALL << 16).astype(np.uint64)
        steps = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
        return np.concatenate([exact + step for step in steps]).astype(np.uint32).view(np.float32)

    def test_float32_rounds_to_bfloat16(self):
        wide = self.around_every_value()
        got = llmcore.tensor(wide, "bfloat16").numpy().view(np.uint32) >> 16
        assert np.array_equal(got, bfloat16_bits(wide))

    def test_float32_rounds_to_float16(self, rng):
        half = self.ALL.astype(np.uint16).view(np.float16).astype(np.float32)
        bits = half.view(np.uint32).astype(np.uint64)
        near = [(bits + step).astype(np.uint32).view(np.float32) for step in
                (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF)]  # fmt: skip
        tiny = (rng.standard_normal(100_000) * 1e-6).astype(np.float32)
        wide = np.concatenate([*near, self.around_every_value(), tiny])
        with np.errstate(over="ignore"):
            want = wide.astype(np.float16)
        got = llmcore.tensor(wide, "float16").numpy()
        same = (got.view(np.uint16) == want.view(np.uint16)) | (np.isnan(got) & np.isnan(want))
        assert same.all()

    def test_pytorch_rounds_alike(self):
        torch = pytest.importorskip("torch")
        wide = self.around_every_value()
        wide = wide[np.isfinite(wide)]
        theirs = torch.from_numpy(wide.copy()).to(torch.bfloat16)
        ours = torch.from_dlpack(llmcore.tensor(wide, "bfloat16"))
        assert torch.equal(theirs.view(torch.int16), ours.view(torch.int16))

    @pytest.mark.parametrize("source", ["float32", "float16", "int32", "int64", "int8", "bool"])
    @pytest.mark.parametrize("target", ["float32", "float16", "int32", "int64", "int8", "bool"])
    def test_between_all_types_as_numpy(self, source, target):
        array = np.array([-128, -3, -1.75, 0, 0.5, 1, 2.5, 100, 127]).astype(source)
        got = llmcore.tensor(array).to(dtype=target).numpy()
        assert got.dtype == target
        assert np.array_equal(got, array.astype(target))

    @pytest.mark.parametrize(
        ("value", "target"),
        [
            (2**31, "int32"), (-(2**31) - 1, "int32"), (128, "int8"), (2.0**63, "int64"),
            (np.nan, "int32"), (np.inf, "int64"), (-np.inf, "int8"), (-129.0, "int8"),
            (3e9, "int32"),
        ],
    )  # fmt: skip
    def test_numbers_that_do_not_fit(self, value, target):
        with pytest.raises(TypeError, match=f"element 1 = .* does not fit {target}"):
            llmcore.tensor([0, value], target)

    def test_numbers_that_just_fit(self):
        edges = {
            "int8": (-128.9, 127.9),
            "int32": (-(2.0**31), 2.0**31 - 128),
            "int64": (-(2.0**63),),
        }
        for target, values in edges.items():
            got = llmcore.tensor(list(values), target).numpy()
            assert np.array_equal(got, np.array(values, np.float32).astype(target))

    def test_same_type_is_the_same_memory(self):
        tensor = llmcore.zeros([3])
        tensor.to(dtype="float32", device="cpu").numpy()[0] = 1
        assert tensor.numpy()[0] == 1


def test_array_protocol():
    tensor = llmcore.tensor([1.5, 2.5])
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    assert np.asarray(tensor, dtype="float32").dtype == np.float32
    assert np.shares_memory(np.asarray(tensor), tensor.numpy())
    assert not np.shares_memory(np.array(tensor, copy=True), tensor.numpy())
    with pytest.raises(ValueError, match="without a copy"):
        tensor.__array__(dtype=np.float64, copy=False)
    with pytest.raises(ValueError, match="without a copy"):
        tensor.to(dtype="bfloat16").__array__(copy=False)
    assert (np.add(tensor, 1) == [2.5, 3.5]).all()


@pytest.mark.parametrize(
    ("obj", "dtype", "shape"),
    [
        (3, "int64", ()), (2.5, "float32", ()), (True, "bool", ()), ([], "float32", (0,)),
        ([[1, 2], [3, 4]], "int64", (2, 2)), ([1, 2.5], "float32", (2,)), ([[]], "float32", (1, 0)),
        (np.float64(1), "float32", ()), (np.ones(2, np.uint16), "int32", (2,)),
        (np.ones(2, np.uint32), "int64", (2,)), (range(3), "int64", (3,)),
    ],
)  # fmt: skip
def test_what_becomes_a_tensor(obj, dtype, shape):
    tensor = llmcore.tensor(obj)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    assert np.array_equal(tensor.numpy(), np.asarray(obj).astype(dtype))


def test_zeros():
    assert not llmcore.zeros([2, 3], "int8").numpy().any()
    assert llmcore.zeros(4).shape == llmcore.zeros(np.int64(4)).shape == (4,)
    assert llmcore.zeros(np.array([2, 3])).shape == llmcore.zeros((2, 3)).shape
    assert llmcore.zeros([]).shape == ()


def test_repr_and_len():
    tensor = llmcore.zeros([2, 3], "bfloat16")
    assert repr(tensor) == "llmcore.Tensor(shape=[2, 3], dtype='bfloat16', device='cpu')"
    assert len(tensor) == 2
    with pytest.raises(TypeError, match="without axes"):
        len(llmcore.tensor(1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: llmcore.tensor("text"), TypeError, ["dtype must be", "str"]),
        (lambda: llmcore.tensor([1 + 2j]), TypeError, ["complex"]),
        (lambda: llmcore.tensor([1], "float64"), TypeError, ["'float64' is unknown", "float32"]),
        (lambda: llmcore.tensor([1], device="tpu"), RuntimeError, ["device must be", "'tpu'"]),
        (lambda: llmcore.tensor([1], device="cuda:x"), RuntimeError, ["'cuda:x'"]),
        (lambda: llmcore.tensor(np.ones(2, np.uint64)), TypeError, ["uint64"]),
        (lambda: llmcore.tensor(np.zeros([1] * 9)), ValueError, ["8 axes", "9"]),
        (lambda: llmcore.from_dlpack([1.0]), TypeError, ["__dlpack__", "list"]),
        (lambda: llmcore.from_dlpack(np.ones(2)), TypeError, ["dtype must be", "64 bits"]),
        (lambda: llmcore.zeros([2, -1]), ValueError, ["negative", "-1"]),
        (lambda: llmcore.zeros([1] * 9), ValueError, ["8 axes"]),
        (lambda: llmcore.zeros("ab"), ValueError, ["shape", "'ab'"]),
        (lambda: llmcore.zeros([2.5]), ValueError, ["shape", "2.5"]),
        (lambda: llmcore.zeros([2**40, 2**40]), MemoryError, ["out of memory"]),
        (lambda: llmcore.zeros([2**60]), MemoryError, ["out of memory"]),
        (lambda: llmcore.zeros([6]).reshape([2, 2]), ValueError, ["[6]", "[2, 2]"]),
        (lambda: llmcore.zeros([6]).reshape([-2, -3]), ValueError, ["negative"]),
        (lambda: llmcore.zeros([0]).reshape([2**32, 2**32]), MemoryError, ["out of memory"]),
        (lambda: llmcore.zeros([6]).to(dtype="float8"), TypeError, ["float8"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert isinstance(raised.value, llmcore.LlmcoreError)
    assert all(word in str(raised.value) for word in words), raised.value
