"""Small pickles that hang, crash or fill the memory of whoever executes them carelessly."""

import pickle
import struct


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text)) + text.encode()


def _doubled(pair: bytes, levels: int) -> bytes:
    """x = (x, x), so often that hashing, comparing or printing it never ends."""
    return b")" + (b"q\x00h\x00" + pair) * levels


_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
HEAD = b"\x80\x02"

# All are bodies: without the protocol, with a STOP.
PICKLES = {
    "dictionary in itself": b"}q\x00" + _text("model") + b"h\x00s.",
    "list in itself": b"]q\x00h\x00a.",
    "list of itself as arguments": b"ccollections\nOrderedDict\n]q\x00h\x00a\x85R.",
    "tuples as key, hashed exponentially": b"}" + _doubled(b"\x86", 60) + b"K\x01s.",
    "frozensets, hashed exponentially": b"\x80\x04)" + b"q\x00(h\x00h\x00\x91" * 60 + b"\x85.",
    "a set of doubled tuples": b"\x80\x04\x8f(" + _doubled(b"\x86", 60) + b"\x90.",
    "300,000 nested tuples": b")" + b"\x85" * 300_000 + b".",
    "300,000 nested tuples as key": b"})" + b"\x85" * 300_000 + b"K\x01s.",
    "300,000 nested lists": b"]" * 300_000 + b"a" * 299_999 + b".",
    "nested dictionaries": b"".join(b"}" + _text("a") for _ in range(150_000))
    + b"N"
    + b"s" * 150_000
    + b".",
    "300,000 marks": b"(" * 300_000 + b".",
    "a memo of a billion": b"Nr\x00\x00\x00\x40.",
    "a memo of a billion, as text": b"Np1073741824\n.",
    "text of a huge length": b"\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "bytes of a huge length": b"\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "bytearray of a huge length": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"a.",
    "frame of a huge length": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "an integer of megabytes": b"\x8b" + struct.pack("<I", 4_000_000) + b"\xff" * 4_000_000 + b".",
    "an integer of megabytes, as text": b"L" + b"9" * 4_000_000 + b"L\n.",
    "a negative length": b"T\xff\xff\xff\xffa.",
    "a list copied again and again": b"ccollections\nOrderedDict\nq\x000]("
    + b"K\x01K\x02\x86" * 50_000
    + b"eq\x010"
    + b"h\x00h\x01\x85R0" * 50_000
    + b"N.",
    "a shape copied again and again": b"ctorch\nSize\nq\x000]("
    + b"K\x01" * 50_000
    + b"eq\x010"
    + b"h\x00h\x01\x85R" * 50_000
    + b"N.",
    "integers with one hash": b"}("
    + b"".join(
        b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 100_000)
    )
    + b"u.",
    "a module with code": b"cos\nsystem\n" + _text("echo pwned > pwned") + b"\x85R.",
    "code by another opcode": b"(" + _text("echo pwned > pwned") + b"ios\nsystem\n.",
    "code by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "an extension": b"\x82\x01.",
    "a buffer outside": b"\x80\x05\x97.",
    "nothing": b"",
    "an empty stack": b".",
    "a stack that runs out": b"NR.",
    "a mark that is not there": b"Nt.",
    "an object that is not remembered": b"h\x07.",
    "a state for a number": b"K\x01}b.",
    "a call of a number": b"K\x01)R.",
    "a tensor of nothing": _TENSOR + b"(NK\x00))\x89NtR.",
    "a tensor as its own argument": _TENSOR + b"]q\x00h\x00a\x85R.",
    "a reference to nothing": b"NQ.",
    "a reference with a wrong tuple": b"(" + _text("storage") + b"tQ.",
    "text that is none": b"X\x02\x00\x00\x00\xff\xfe.",
    "a name that is none": b"c\xff\xfe\nx\n.",
    "a very long name": b"c" + b"a" * 1_000_000 + b"\nx\n.",
}

# Those that take seconds: read by every reader with `make test-slow`, by one of them always.
LARGE = {name for name, body in PICKLES.items() if len(body) > 200_000}
