"""Pickles are read as data: with the values of `pickle`, and without running instructions."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from designs import each_value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from hypothesis_profiles import examples
from promises import NO_CODE, Promise

from fedlora_sim.tasks.plain_pickle import PlainPickleError, load_plain_pickle

NUMBERS = npst.boolean_dtypes() | npst.integer_dtypes() | npst.unsigned_integer_dtypes()
ARRAYS = npst.arrays(
    NUMBERS | npst.floating_dtypes(), npst.array_shapes(min_dims=1, min_side=0, max_side=4)
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | ARRAYS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_values_of_pickle_are_read(value: object, protocol: int) -> None:
    found = load_plain_pickle(pickle.dumps(value, protocol))
    np.testing.assert_equal(found, value)


@settings(max_examples=examples(100))
@given(st.binary(max_size=200), st.integers(0, 400), st.binary(max_size=3))
def test_damage_is_an_error_or_another_plain_value(noise: bytes, place: int, change: bytes) -> None:
    whole = pickle.dumps({"data": np.arange(12).reshape(3, 4), "labels": [1, 2]})
    for data in (noise, whole[:place] + change + whole[place + len(change) :], whole[:place]):
        try:
            found = load_plain_pickle(data)
        except PlainPickleError:
            continue
        assert isinstance(
            found, dict | list | tuple | int | float | str | bytes | bytearray | None | np.ndarray
        )


def by_name(module: str, name: str, argument: bytes) -> bytes:
    """Return a pickle that calls a function with a text, as an attacker writes it."""
    text = b"X" + struct.pack("<I", len(argument)) + argument
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + text + b"\x85R."


OBJECT_ARRAY = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    b"(K\x01(K\x01tcnumpy\ndtype\n(U\x02%sK\x00K\x01tR"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    b"\x89U\x08AAAAAAAAtb."
)
"""An array of pointers taken from the file; reading it by `pickle` ends the process."""


@each_value(
    module=["os", "posix", "builtins", "numpy", "subprocess"],
    name=["system", "eval", "exec", "load", "open", "getoutput"],
)
def test_no_function_is_called(tmp_path: Path, module: str, name: str, promise: Promise) -> None:
    count = promise(NO_CODE, "crafted pickles")
    canary = tmp_path / "canary"
    for argument in (f"touch {canary}", f"__import__('os').mkdir({str(canary)!r})", str(canary)):
        with pytest.raises(PlainPickleError, match=rf"it asks for {module}\.{name}"):
            load_plain_pickle(by_name(module, name, argument.encode()))
        count()
    assert not canary.exists()


@pytest.mark.parametrize("kind", [b"O8", b"V8", b"S8", b"U2", b"M8"])
def test_arrays_of_anything_but_numbers_are_refused(kind: bytes, promise: Promise) -> None:
    count = promise(NO_CODE, "crafted pickles")
    with pytest.raises(PlainPickleError, match="array of type"):
        load_plain_pickle(OBJECT_ARRAY % kind)
    count()


def test_the_crafted_array_crashes_pickle_itself() -> None:
    # Otherwise the tests above would refuse a harmless file.
    program = f"import pickle; print(pickle.loads({OBJECT_ARRAY % b'O8'!r}, encoding='bytes'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04\x95", "damaged"),
        (b"", "no end|damaged"),
        (b"(.", "damaged"),
        (b"0.", "damaged"),
        (b"h\x01.", "damaged"),
        (b"\x80\x02c__main__\nX\n)\x81.", "asks for __main__.X"),
        (b"\x80\x02U\x01a\x82\x01.", "instruction EXT1"),
        (b"Ptext\n.", "instruction PERSID"),
        (b"\x80\x02cnumpy\nndarray\n.", "ndarray for a value"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "calls ndarray"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.", "array without content"),
        (b"\x80\x02}(K\x01K\x02\x86K\x01u.", "key of type tuple"),
        (OBJECT_ARRAY.replace(b"(K\x01t", b"(K\x09t") % b"u1", "shape"),
    ],
)
def test_values_that_are_not_plain_are_named(data: bytes, message: str) -> None:
    with pytest.raises(PlainPickleError, match=message):
        load_plain_pickle(data)


def test_small_files_take_little_memory_and_time() -> None:
    shared = b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(200)
    )
    assert len(load_plain_pickle(shared + b".")) == 2  # 2**200 items when it is unfolded
    with pytest.raises(PlainPickleError):
        load_plain_pickle(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.")
    assert isinstance(load_plain_pickle(b"(" * 10**5 + b"t" * 10**5 + b"."), tuple)
