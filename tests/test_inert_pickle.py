"""Pickles read as data: every protocol, limits, and nothing that grows by a number in the file."""

import collections
import pickle

import pytest

from jaxadv.inert_pickle import Inert, Name, Unpickler, ordered_dict

DATA = {
    "a" * 5000: [1, -2.5, (3,), "é\n", True, None, 2**70, b"\x00"],
    "b": [[], {}, (), {"c": (1, 2)}],
}


def find(module, name):
    make = {"OrderedDict": ordered_dict, "encode": lambda text, _: text.encode("latin1")}
    return Name(name, make.get(name, lambda *_: Inert(name)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_the_data(protocol):
    assert Unpickler(pickle.dumps(DATA, protocol), find).load() == DATA
    content = collections.OrderedDict(x=collections.Counter("ab"), y={1, 2}, z=frozenset("a"))
    read = Unpickler(pickle.dumps(content, protocol), find).load()
    assert list(read) == ["x", "y", "z"] and {type(value) for value in read.values()} == {Inert}


def test_pickles_that_follow_each_other():
    pickles = Unpickler(pickle.dumps(1) + pickle.dumps("two") + b"rest", find)
    assert (pickles.load(), pickles.load()) == (1, "two")
    assert pickles.position == len(pickle.dumps(1) + pickle.dumps("two"))


def test_only_text_is_a_key():
    content = {"a": 1, b"b": 2, 3: 4, (5, (6,)): 7, None: 8}
    assert Unpickler(pickle.dumps(content), find).load() == {"a": 1, b"b": 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"Nr\x00\x00\x00\x40.", "remembers object number 1073741824"),
        (b"Np-1\n.", "remembers object number -1"),
        (b"\x8b\x00\x01\x00\x00" + bytes(256) + b".", "an integer of 256 bytes"),
        (b"L" + b"9" * 5000 + b"\n.", "a line of the pickle is not terminated"),
        (b"I1e3\n.", "a malformed integer"),
        (b"]" * 1000 + b".", "more than 900 operations"),
        (b"ccollections\nOrderedDict\n](" + b"K\x01K\x01\x86" * 250 + b"e\x85R.", "more than 900"),
        (b"}(K\x01u.", "a key without a value"),
        (b"K\x01K\x02a.", "appends to a int"),
    ],
)
def test_what_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        Unpickler(b"\x80\x02" + body, find, max_operations=900).load()


def test_names_and_references_need_somebody_who_knows_them():
    with pytest.raises(ValueError, match="refers to a name"):
        Unpickler(b"cos\nsystem\n.", None).load()
    with pytest.raises(ValueError, match="refers to objects outside"):
        Unpickler(b"NQ.", find).load()
