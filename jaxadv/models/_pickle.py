"""A pickle as data: an interpreter of its opcodes that runs nothing and builds only inert values.

Python's own unpickler, however restricted, lets a file of a hundred bytes hang it (nested tuples as
keys of a dictionary), crash it (a million of them) or fill the memory (a memo index of 2^30). Here
the memo is a dictionary, keys are plain, the number of opcodes is bounded, and the only callables
are those that the caller's table gives for the names in the file.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_OPCODES = 2**20  # a checkpoint with the state of its optimizer has some ten thousand
_MARK = object()


class Opaque:
    """Something that is accepted and not decoded."""

    def __init__(self, *_):
        pass


class _Name:
    """A global name of the file and what the table gives for it."""

    def __init__(self, full: str, make: Callable):
        self.full, self.make = full, make


Table = Callable[[str, str], Callable]


def read_pickle(
    file: BinaryIO, table: Table, *, persistent: Callable | None = None, text: bool = True
) -> Any:
    """What one pickle of a file describes; the file is left behind its end.

    Args:
        file: at the start of a pickle.
        table: from a module and a name in it to the function that is called where the pickle calls
            that name; raises ``ValueError`` for what is not allowed.
        persistent: from the argument of a persistent reference to its value.
        text: whether the strings of Python 2 are text.

    Returns:
        Dictionaries, lists, tuples, numbers, strings, and what the table's functions return.
        Values that are no plain keys stay out of dictionaries and sets.

    Raises:
        ValueError: on anything that is not a pickle of such values.
    """
    machine = _Machine(table, persistent, text)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPCODES:
            raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise ValueError("its pickle has no end")


class _Machine:
    def __init__(self, table: Table, persistent: Callable | None, text: bool):
        self._table, self._persistent, self._text = table, persistent, text
        self._stack: list = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
            self._stack.append(argument if self._text else argument.encode("latin1"))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"its pickle asks for a value {argument} that it never stored")
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                raise ValueError(f"its pickle holds {name}, which data have no use for")
            handler(argument)

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("its pickle takes a value that is not there")
        return self._stack.pop()

    def _items(self) -> list:
        """Everything above the last mark."""
        found = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return found[::-1]
            found.append(value)
        raise ValueError("its pickle takes values that are not there")

    def _container(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind | Opaque):
            raise ValueError("its pickle fills a container that is not there")
        return self._stack[-1]

    def _mark(self, _):
        self._stack.append(_MARK)

    def _pop(self, _):
        if not self._stack:
            raise ValueError("its pickle takes a value that is not there")
        self._stack.pop()

    def _pop_mark(self, _):
        self._items()

    def _dup(self, _):
        value = self.pop()
        self._stack += [value, value]

    def _empty_list(self, _):
        self._stack.append([])

    def _empty_dict(self, _):
        self._stack.append({})

    def _empty_set(self, _):
        self._stack.append(set())

    def _empty_tuple(self, _):
        self._stack.append(())

    def _tuple(self, _):
        self._stack.append(tuple(self._items()))

    def _take(self, number: int) -> tuple:
        return tuple([self.pop() for _ in range(number)][::-1])

    def _tuple1(self, _):
        self._stack.append(self._take(1))

    def _tuple2(self, _):
        self._stack.append(self._take(2))

    def _tuple3(self, _):
        self._stack.append(self._take(3))

    def _list(self, _):
        self._stack.append(self._items())

    def _dict(self, _):
        items = self._items()
        self._stack.append({})
        self._put(items)

    def _frozenset(self, _):
        self._stack.append(frozenset(filter(_is_key, self._items())))

    def _append(self, _):
        value = self.pop()
        target = self._container(list)
        if isinstance(target, list):
            target.append(value)

    def _appends(self, _):
        values = self._items()
        target = self._container(list)
        if isinstance(target, list):
            target.extend(values)

    def _additems(self, _):
        values = self._items()
        target = self._container(set)
        if isinstance(target, set):
            target.update(filter(_is_key, values))

    def _setitem(self, _):
        self._put(list(self._take(2)))

    def _setitems(self, _):
        self._put(self._items())

    def _put(self, items: list) -> None:
        target = self._container(dict)
        if len(items) % 2:
            raise ValueError("its pickle has a key without a value")
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if _is_key(key))

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._stack.append(_Name(f"{module}.{name}", self._table(module, name)))

    def _stack_global(self, _):
        module, name = self._take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle refers to a name that is no text")
        self._stack.append(_Name(f"{module}.{name}", self._table(module, name)))

    def _reduce(self, _):
        function, arguments = self._take(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls something that is no function")
        self._stack.append(function.make(*arguments))

    _newobj = _reduce

    def _newobj_ex(self, _):
        self.pop()  # keyword arguments: nothing that is allowed has any
        self._reduce(None)

    def _build(self, _):
        state = self.pop()
        build = getattr(self._stack[-1] if self._stack else None, "build", None)
        if build is not None:
            build(state)

    def _binpersid(self, _):
        if self._persistent is None:
            raise ValueError("its pickle refers to something outside")
        self._stack.append(self._persistent(self.pop()))


def _is_key(value: Any) -> bool:
    """Whether a value may be hashed: plain, or a tuple of plain values."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Text, bytes, None, or a number small enough not to be made to collide with others."""
    if isinstance(value, int | float):
        return abs(value) < 2**53
    return value is None or isinstance(value, str | bytes)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
