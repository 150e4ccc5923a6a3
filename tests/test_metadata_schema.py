import struct

import numpy as np
import pytest

from mobileprune.errors import ModelError
from mobileprune.metadata_schema import IDENTIFIER, MAX_ITEMS, TABLES, Many, Number, Table, Text, Union, pack, unpack


def filled(name):
    """A table with every field that there is."""
    return {field: value(kind) for field, kind in TABLES[name]}


def value(kind):
    match kind:
        case Number():
            return 3
        case Text():
            return "Größe"
        case Table(name):
            return filled(name)
        case Union(names):
            return {"kind": names[-1], **filled(names[-1])}
        case Many(Number()):
            return [1.5, -2.0]
        case Many(of):
            return [value(of), value(of)]


def test_everything_comes_back():
    whole = filled("ModelMetadata")
    data = pack(whole)
    assert data[4:8] == IDENTIFIER
    assert unpack(data) == whole
    assert pack(whole) == data


def test_what_is_missing_stays_missing():
    assert unpack(pack({})) == {}
    assert unpack(pack({"name": ""})) == {"name": ""}


def test_fields_that_the_schema_does_not_have_are_refused():
    with pytest.raises(ValueError, match="ModelMetadata has no colour"):
        pack({"colour": "red"})


def test_tables_that_are_not_listed_are_passed_over():
    """A union of a type that came later."""
    data = bytearray(pack({"subgraph_metadata": [{"input_tensor_metadata": [{"process_units": [unit()]}]}]}))
    places = [place for place in range(len(data)) if data[place] == 1]
    read = []
    for place in places:
        changed = data.copy()
        changed[place] = 6
        try:
            read.append(unpack(bytes(changed)))
        except ModelError:
            continue
    assert {"subgraph_metadata": [{"input_tensor_metadata": [{"process_units": [{}]}]}]} in read


def unit():
    return {"options": {"kind": "NormalizationOptions", "mean": [2.0], "std": [3.0]}}


@pytest.mark.parametrize("data", [b"", b"1234M00", b"1234TFL3", pack({})[:4] + b"M002" + pack({})[8:]])
def test_other_bytes_are_refused(data):
    with pytest.raises(ModelError, match="not in TensorFlow Lite's format"):
        unpack(data)


def refuses(data):
    try:
        unpack(data)
    except ModelError:
        return True
    return False


def test_damage_is_one_clear_error_or_other_metadata():
    whole = pack(filled("ModelMetadata"))
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        if generator.random() < 0.5:
            place = int(generator.integers(8, len(data)))
            data[place] = int(generator.integers(256))
        else:  # an offset or a count that is far off
            place = int(generator.integers(2, len(data) // 4)) * 4
            struct.pack_into("<i", data, place, int(generator.choice([-1, 1 << 30, -(1 << 31), len(data), 4])))
        refused += refuses(bytes(data))
    assert refused > 200
    for end in range(8, len(whole), 11):
        assert refuses(whole[:end])


def test_tables_that_are_referred_to_many_times_are_read_no_further_than_the_limit():
    """Hundreds of tensors, in hundreds of graphs that are one and the same."""
    full = {"input_tensor_metadata": [{"name": "x"}] * 400}
    data = bytearray(pack({"subgraph_metadata": [full, *[{}] * 400]}))

    def number(form, place):
        return struct.unpack_from(form, data, place)[0]

    root = number("<I", 0)
    graphs = root + number("<H", root - number("<i", root) + 4 + 2 * 3)
    graphs += number("<I", graphs)
    assert number("<I", graphs) == 401
    first = graphs + 4 + number("<I", graphs + 4)
    for place in range(graphs + 4, graphs + 4 + 4 * 401, 4):
        struct.pack_into("<I", data, place, first - place)
    with pytest.raises(ModelError, match=f"more than {MAX_ITEMS:,} entries"):
        unpack(bytes(data))
