"""Resolves the names in PyTorch's pickles.

Supported are the names that ``torch.load(weights_only=True)`` accepts, ``argparse.Namespace``,
NumPy scalars and arrays, and a few containers. Tensors become `Tensor`, or `Unreadable` if they
have no plain numbers; everything else is inert.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..inert_pickle import Inert, Name, ordered_dict
from ._stored import Storage, Tensor, Unreadable, dtypes, tensor_of

# The storages of torch.save and their dtypes.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "int8",
    "QInt32Storage": "int32",
    "QUInt8Storage": "uint8",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
    "UntypedStorage": "uint8",
    "TypedStorage": "uint8",
}
_STORAGE = re.compile(r"torch(\.cuda|\.storage)?\.(\w+Storage)")
_TENSOR = re.compile(
    r"torch(\.cuda)?(\.sparse)?\.(BFloat16|Bool|Byte|Char|Double|Float|Half|Int|"
    r"Long|Short)?Tensor"
)
_DTYPE = re.compile(
    r"torch\.((complex|u?int|float)\d+|bool|bfloat16|float\d_e\w+|bits\d+(x\d)?|qu?int\d+(x\d)?|"
    r"per_(tensor|channel)_(affine|symmetric)|per_channel_affine_float_qparams)"
)
_NUMPY = re.compile(r"numpy\.(\w+\.)*(scalar|dtype|ndarray|_reconstruct|\w+DType)")
_INERT = {
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "builtins.frozenset",
    "builtins.slice",
    "builtins.range",
    "collections.Counter",
    "collections.defaultdict",
    "collections.deque",
    "torch.device",
    "torch.serialization._get_layout",
    "_codecs.encode",
}
_PYTHON2 = {"__builtin__": "builtins"}


class TypeName(Name):
    """The name of a dtype or storage."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: np.dtype | None) -> None:
        super().__init__(name, lambda *_: Inert(name))
        self.dtype = dtype


class Names:
    """Resolves names.

    Args:
      big_endian: byte order of the file.
    """

    def __init__(self, big_endian: bool) -> None:
        self.big_endian = big_endian
        self._rebuild: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": ordered_dict,
            "torch.Size": _size,
            "torch.nn.parameter.Parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
            "torch._utils._rebuild_device_tensor_from_numpy": lambda *_: _unreadable("a device"),
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_qtensor": lambda *_: _unreadable("a quantized"),
            "torch._utils._rebuild_sparse_tensor": lambda *_: _unreadable("a sparse"),
            "torch._utils._rebuild_nested_tensor": lambda *_: _unreadable("a nested"),
            "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: _unreadable("a meta"),
            "torch._utils._rebuild_wrapper_subclass": lambda *_: _unreadable("a wrapped"),
            "torch._tensor._rebuild_from_type_v2": _of_a_subclass,
        }
        self._known: dict[str, Name] = {}

    def find(self, module: str, name: str) -> Name:
        """The `Name` for a name in a pickle.

        Raises:
          ValueError: if weights do not need it.
        """
        full = f"{_PYTHON2.get(module, module)}.{name}"
        if full not in self._known:
            self._known[full] = self._make(full)
        return self._known[full]

    def _make(self, full: str) -> Name:
        if full in self._rebuild:
            return Name(full, self._rebuild[full])
        storage = _STORAGE.fullmatch(full)
        if storage and storage[2] in STORAGES:
            return TypeName(full, dtypes()[STORAGES[storage[2]]])
        if _DTYPE.fullmatch(full):
            return TypeName(full, dtypes().get(full.removeprefix("torch.")))
        if _TENSOR.fullmatch(full):
            return Name(full, lambda *_: _unreadable("an old or sparse"))
        if full in _INERT or _NUMPY.fullmatch(full):
            return Name(full, lambda *_: Inert(full))
        shown = full if len(full) <= 100 else full[:100] + "..."
        raise ValueError(
            f"the file refers to {shown if shown.isprintable() else ascii(shown)}, which a weights "
            "file does not need; rejected. If you trust it, open it with PyTorch and save "
            "model.state_dict() alone."
        )

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
        # After requires_grad and hooks: operations pending on the stored numbers.
        if len(rest) > 2 and rest[2]:
            return _unreadable("a conjugated or negated")
        return tensor_of(storage, offset, shape, strides, self.big_endian)

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
        grad, hooks, dtype, *more = rest
        if type(dtype) is not TypeName or type(storage) is not Storage:
            raise ValueError("a tensor in the file has no dtype; the file is damaged")
        item = 1 if dtype.dtype is None else dtype.dtype.itemsize
        storage = storage.part(dtype.dtype, 0, storage.nbytes // item)
        return self._tensor(storage, offset, shape, strides, grad, hooks, *more)


def _size(items: Any = ()) -> tuple:
    if type(items) not in (list, tuple):
        raise ValueError("a shape in the file is invalid; the file is damaged")
    return tuple(items)


def _unreadable(kind: str) -> Unreadable:
    return Unreadable(f"it is {kind} tensor, which is not supported; save it dense, as float32")


def _of_a_subclass(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with extra attributes, which are dropped."""
    del kind, state
    known = type(rebuild) is Name and rebuild.name.startswith("torch._utils.")
    if not known or type(arguments) is not tuple:
        return _unreadable("an unknown kind of")
    made = rebuild.make(*arguments)
    return made if type(made) in (Tensor, Unreadable) else _unreadable("an unknown kind of")
