import io
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import images, variants

from mobileprune.errors import ModelError
from mobileprune.tflite_extras import MAX_FILE_BYTES, MAX_FILES, attached_files, metadata_entry, with_attached
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import packed, set_metadata, unpacked
from mobileprune.tflite_runner import TfliteRunner

FILES = {"labels.txt": b"cat\ndog\n", "zeros": bytes(1000), "Größe.json": b"{}", "empty": b""}


def described():
    """A file with a metadata buffer, which alone lets attached files be looked for."""
    model = unpacked(variants()["int8"].content)
    set_metadata(model, "TFLITE_METADATA", b"....M001")
    return packed(model)


def with_archive(members, method=zipfile.ZIP_STORED):
    """As any writer of zip files would do it."""
    made = io.BytesIO()
    made.write(described())
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()


def test_attached_files_come_back_and_the_network_stays():
    content = with_attached(described(), FILES)
    assert attached_files(content) == FILES
    assert content.startswith(described())
    assert read_graph(content) == read_graph(described())
    data = images(4)
    with TfliteRunner(content) as ours, TfliteRunner(variants()["int8"].content) as plain:
        np.testing.assert_array_equal(ours.run(data), plain.run(data))


def test_members_are_stored_without_a_date_or_a_system():
    assert with_attached(described(), FILES) == with_attached(described(), FILES)
    with zipfile.ZipFile(io.BytesIO(with_attached(described(), FILES))) as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.create_system == 0


def test_nothing_attached_is_nothing_changed():
    assert with_attached(described(), {}) == described()
    assert attached_files(described()) == {}


def test_without_metadata_an_archive_is_not_looked_for():
    content = variants()["int8"].content
    assert attached_files(with_attached(content, FILES)) == {}
    assert metadata_entry(content) is None


def test_files_of_other_writers_may_be_compressed():
    content = with_archive(FILES.items(), zipfile.ZIP_DEFLATED)
    assert attached_files(content) == FILES


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", "c:x", "a\\b", "folder/", "n" * 201, "\N{FULLWIDTH SOLIDUS}/"]
)
def test_paths_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no name for a file"):
        attached_files(with_archive([(name, b"")]))
    with pytest.raises(ModelError, match="no name for a file"):
        with_attached(described(), {name: b""})
    assert not list(tmp_path.iterdir())


def test_bombs_are_read_no_further_than_the_limit():
    content = with_archive([("labels.txt", bytes(200 * 2**20))], zipfile.ZIP_DEFLATED)
    assert len(content) < 10**6
    with pytest.raises(ModelError, match=r"'labels.txt', .* has more than 4,194,304 bytes"):
        attached_files(content)


def test_limits():
    with pytest.raises(ModelError, match=f"{MAX_FILES + 1} files are attached"):
        attached_files(with_archive([(f"{index}", b"") for index in range(MAX_FILES + 1)]))
    for files in ({"large": bytes(MAX_FILE_BYTES + 1)}, {f"{index}": b"" for index in range(MAX_FILES + 1)}):
        with pytest.raises(ModelError, match="cannot be attached"):
            with_attached(described(), files)


def test_two_files_of_one_name_are_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        content = with_archive([("a", b"1"), ("a", b"2")])
    with pytest.raises(ModelError, match="Two files called 'a'"):
        attached_files(content)


def test_other_compressions_and_passwords_are_refused():
    with pytest.raises(ModelError, match="in a compression that is not read"):
        attached_files(with_archive([("a", b"1" * 100)], zipfile.ZIP_BZIP2))
    content = bytearray(with_archive([("a", b"1")]))
    content[content.rindex(b"PK\1\2") + 8] |= 1
    with pytest.raises(ModelError, match="cannot be read: RuntimeError"):
        attached_files(bytes(content))


def test_a_wrong_checksum_is_noticed():
    content = bytearray(with_archive([("a", b"cat and dog")]))
    content[content.rindex(b"cat and dog")] ^= 1
    with pytest.raises(ModelError, match="Bad CRC"):
        attached_files(bytes(content))


def test_damaged_archives_are_one_clear_error_or_none():
    """Every byte of the archive set to another value: read, or refused, and nothing else."""
    whole = with_attached(described(), FILES)
    generator = np.random.default_rng(0)
    refused = 0
    for place in range(len(described()), len(whole)):
        content = bytearray(whole)
        content[place] = (content[place] + int(generator.integers(1, 256))) % 256
        try:
            attached_files(bytes(content))
        except ModelError:
            refused += 1
    assert refused > 100
    for end in range(len(described()), len(whole), 7):
        assert attached_files(whole[:end]) == {}


@pytest.mark.parametrize("field", ["count", "buffer"])
def test_damaged_entries_are_one_clear_error(field):
    content = bytearray(described())
    model = schema.Model.GetRootAs(content, 0)
    if field == "buffer":
        table = model.Metadata(model.MetadataLength() - 1)._tab
        place = table.Pos + table.Offset(6)
    else:
        place = model._tab.Vector(model._tab.Offset(16)) - 4
    content[place : place + 4] = (1 << 24).to_bytes(4, "little")
    with pytest.raises(ModelError, match="damaged"):
        metadata_entry(bytes(content))
