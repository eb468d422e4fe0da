"""Pickles read as data: nothing is imported, no pickled object is created, and growth is bounded.

A pickle is a program for a stack machine. `Unpickler` interprets only the opcodes that data need,
and nothing it builds can recurse, hash an unknown object or allocate by a number in the file:
lengths are checked against the remaining bytes, the memo is a dictionary, operations are counted,
and dictionary keys must be text.
"""

import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

_MAX_INTEGER = 255  # bytes; the most LONG1 can hold and torch.save writes
_MAX_LINE = 4096  # length of newline-terminated names and numbers


class Inert:
    """Placeholder for an unneeded object in the file; discards everything set on it.

    Attributes:
      name: name of its class in the file.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name} of the file>"

    def build(self, state: Any) -> None:
        """Receives the argument of `__setstate__`."""


class Name:
    """Placeholder for a class or function named by a pickle.

    Attributes:
      name: the full name in the file.
      make: computes the result of a call from its positional arguments.
    """

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name, self.make = name, make

    def __repr__(self) -> str:
        return self.name


class Unpickler:
    """Interprets consecutive pickles in a buffer.

    Dictionaries keep only entries with text (or bytes) keys, since the file's author could make
    hashing anything else slow. Sets, and objects of classes that ``find`` returns as `Inert`, keep
    nothing.

    Args:
      data: the buffer.
      find: returns a `Name` for a module and a name, or raises to reject it.
      persistent_load: resolves persistent identifiers; None rejects them.
      encoding: encoding of Python 2 strings; None leaves them as bytes.
      max_operations: maximum number of opcodes over all pickles of the buffer.

    Example:
      >>> Unpickler(pickle.dumps({"a": [1, 2.5], 3: "dropped"}), find=None).load()
      {'a': [1, 2.5]}
    """

    def __init__(
        self,
        data: bytes,
        find: Callable[[str, str], Name] | None,
        *,
        persistent_load: Callable[[Any], Any] | None = None,
        encoding: str | None = "utf-8",
        max_operations: int = 400_000,
    ) -> None:
        self.position = 0
        self._data, self._find, self._encoding = data, find, encoding
        self._persistent_load = persistent_load
        self._limit, self._count = max_operations, 0

    def load(self) -> Any:
        """Reads the next pickle; `position` then points past it.

        Raises:
          ValueError: if it is damaged, needs a name that ``find`` rejects, or exceeds the limits.
        """
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            return self._run()
        except (LookupError, TypeError, AttributeError, OverflowError, struct.error) as error:
            raise ValueError(f"a damaged pickle ({type(error).__name__}: {error})") from error
        finally:
            self._stack, self._marked, self._memo = [], [], {}

    def _run(self) -> Any:
        data, operations, stop = self._data, _OPERATIONS, pickle.STOP[0]
        while self.position < len(data):
            code = data[self.position]
            self.position += 1
            if code == stop:
                return self._stack.pop()
            self._count += 1
            if self._count > self._limit:
                self.spend(0)
            if code not in operations:
                raise ValueError(f"opcode {code:#04x} is not allowed in data")
            operations[code](self)
        raise ValueError("the pickle ends too early")

    def spend(self, number: int) -> None:
        """Counts operations against the limit; operations that copy count once per item."""
        self._count += number
        if self._count > self._limit:
            raise ValueError(
                f"it executes more than {self._limit} operations; weights and images need far fewer"
            )

    # Reading

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise ValueError("the pickle ends too early")
        self.position, start = end, self.position
        return self._data[start:end]

    def _raw_line(self, limit: int) -> bytes:
        end = self._data.find(b"\n", self.position, self.position + limit)
        if end < 0:
            raise ValueError("a line of the pickle is not terminated")
        return self._take(end + 1 - self.position)[:-1]

    def _line(self) -> str:
        return self._raw_line(_MAX_LINE).decode()

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _sized(self, code: str) -> bytes:
        return self._take(self._number(code))

    def _python2(self, raw: bytes) -> bytes | str:
        return raw if self._encoding is None else raw.decode(self._encoding)

    def _integer(self, raw: bytes) -> int:
        if len(raw) > _MAX_INTEGER:
            raise ValueError(f"it contains an integer of {len(raw)} bytes")
        return int.from_bytes(raw, "little", signed=True)

    def _integer_line(self) -> int | bool:
        text = self._line()
        if text in ("00", "01"):
            return text == "01"
        if not re.fullmatch(r"-?\d{1,600}L?", text, re.ASCII):
            raise ValueError("it contains a malformed integer")
        return int(text.rstrip("L"))

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _last(self, number: int) -> list[Any]:
        if len(self._stack) < number:
            raise ValueError("a damaged pickle pops from an empty stack")
        items = self._stack[len(self._stack) - number :]
        del self._stack[len(self._stack) - number :]
        return items

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _put(self, index: int) -> None:
        # Picklers number from 0 or 1, and at most one object an operation.
        if not 0 <= index <= self._count:
            raise ValueError(f"it remembers object number {index}, of {self._count} at most")
        self._memo[index] = self._stack[-1]

    # Containers

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise ValueError(f"it appends to a {type(target).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise ValueError("it has a key without a value")
        if type(target) is dict:
            _update(target, items)
        elif type(target) is not Inert:
            raise ValueError(f"it sets items of a {type(target).__name__}")

    # Names and objects

    def _global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or self._find is None:
            raise ValueError("it refers to a name")
        self._push(self._find(module, name))

    def _call(self, name: Any, arguments: Any) -> None:
        if type(name) is not Name or type(arguments) is not tuple:
            raise ValueError("it calls something that is not a function")
        self.spend(sum(len(a) for a in arguments if type(a) in (list, tuple)))
        self._push(name.make(*arguments))

    def _build(self) -> None:
        target, state = self._last(2)
        if hasattr(target, "build"):
            target.build(state)
        elif type(target) is not dict:  # attributes of an OrderedDict, which a dict lacks
            raise ValueError(f"it sets the state of a {type(target).__name__}")
        self._push(target)

    def _persistent(self) -> None:
        if self._persistent_load is None:
            raise ValueError("it refers to objects outside")
        self._push(self._persistent_load(self._stack.pop()))


def ordered_dict(*arguments: Any) -> dict:
    """An OrderedDict's content, empty or from one list of pairs as written by Python 2.

    Args:
        *arguments: arguments of the constructor in the file.

    Example:
        >>> ordered_dict([["weight", 1]])
        {'weight': 1}
    """
    found: dict = {}
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise ValueError("it creates an OrderedDict from something unknown")
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise ValueError("it creates an OrderedDict from something unknown")
        _update(found, pair)
    return found


def _update(target: dict, items: Any) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) in (str, bytes):
            target[key] = value


def _dictionary(items: list[Any]) -> dict:
    if len(items) % 2:
        raise ValueError("it has a key without a value")
    found: dict = {}
    _update(found, items)
    return found


_Machine = Unpickler
_BY_CODE: dict[bytes, Callable[[Unpickler], Any]] = {
    # Numbers
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.INT: lambda m: m._push(m._integer_line()),
    pickle.LONG: lambda m: m._push(m._integer_line()),
    pickle.BININT: lambda m: m._push(m._number("<i")),
    pickle.BININT1: lambda m: m._push(m._number("<B")),
    pickle.BININT2: lambda m: m._push(m._number("<H")),
    pickle.LONG1: lambda m: m._push(m._integer(m._sized("<B"))),
    pickle.LONG4: lambda m: m._push(m._integer(m._sized("<I"))),
    pickle.FLOAT: lambda m: m._push(float(m._line())),
    pickle.BINFLOAT: lambda m: m._push(m._number(">d")),
    # Text and bytes
    pickle.UNICODE: lambda m: m._push(m._raw_line(len(m._data)).decode("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m._push(m._sized("<B").decode("utf-8", "surrogatepass")),
    pickle.BINUNICODE: lambda m: m._push(m._sized("<I").decode("utf-8", "surrogatepass")),
    pickle.BINUNICODE8: lambda m: m._push(m._sized("<Q").decode("utf-8", "surrogatepass")),
    pickle.SHORT_BINSTRING: lambda m: m._push(m._python2(m._sized("<B"))),
    pickle.BINSTRING: lambda m: m._push(m._python2(m._sized("<I"))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._sized("<B")),
    pickle.BINBYTES: lambda m: m._push(m._sized("<I")),
    pickle.BINBYTES8: lambda m: m._push(m._sized("<Q")),
    pickle.BYTEARRAY8: lambda m: m._push(m._sized("<Q")),
    # Containers
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.TUPLE1: lambda m: m._push(tuple(m._last(1))),
    pickle.TUPLE2: lambda m: m._push(tuple(m._last(2))),
    pickle.TUPLE3: lambda m: m._push(tuple(m._last(3))),
    pickle.TUPLE: lambda m: m._push(tuple(m._since_mark())),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.LIST: lambda m: m._push(m._since_mark()),
    pickle.APPEND: lambda m: m._append(m._last(1)),
    pickle.APPENDS: lambda m: m._append(m._since_mark()),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.DICT: lambda m: m._push(_dictionary(m._since_mark())),
    pickle.SETITEM: lambda m: m._set_items(m._last(2)),
    pickle.SETITEMS: lambda m: m._set_items(m._since_mark()),
    pickle.EMPTY_SET: lambda m: m._push(Inert("set")),
    pickle.FROZENSET: lambda m: (m._since_mark(), m._push(Inert("frozenset"))),
    pickle.ADDITEMS: lambda m: m._append(m._since_mark()),
    # The stack and the memo
    pickle.MARK: _Machine._mark,
    pickle.POP: _Machine._pop,
    pickle.POP_MARK: _Machine._since_mark,
    pickle.DUP: lambda m: m._push(m._stack[-1]),
    pickle.GET: lambda m: m._push(m._memo[int(m._line())]),
    pickle.BINGET: lambda m: m._push(m._memo[m._number("<B")]),
    pickle.LONG_BINGET: lambda m: m._push(m._memo[m._number("<I")]),
    pickle.PUT: lambda m: m._put(int(m._line())),
    pickle.BINPUT: lambda m: m._put(m._number("<B")),
    pickle.LONG_BINPUT: lambda m: m._put(m._number("<I")),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    # Names and objects
    pickle.GLOBAL: lambda m: m._global(m._line(), m._line()),
    pickle.STACK_GLOBAL: lambda m: m._global(*m._last(2)),
    pickle.REDUCE: lambda m: m._call(*m._last(2)),
    pickle.NEWOBJ: lambda m: m._call(*m._last(2)),
    pickle.BUILD: _Machine._build,
    pickle.BINPERSID: _Machine._persistent,
    # The head
    pickle.PROTO: lambda m: m._take(1),
    pickle.FRAME: lambda m: m._number("<Q"),
}
_OPERATIONS = {code[0]: operation for code, operation in _BY_CODE.items()}
