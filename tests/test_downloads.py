import functools
import hashlib
import http.server
import socket
import threading

import pytest

from mobileprune import downloads
from mobileprune.downloads import fetched
from mobileprune.errors import SettingsError

CONTENT = b"a program"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(tmp_path):
    """A web server on loopback with one file; what was asked of it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "tool").write_bytes(CONTENT)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_file_is_downloaded_once(site, tmp_path):
    address, asked = site
    for digest in (DIGEST, DIGEST.upper()):
        path = fetched(f"{address}/tool#sha256={digest}", tmp_path / "downloads")
        assert path.read_bytes() == CONTENT
    assert asked == ["/tool"]
    path.write_bytes(b"damaged")
    assert fetched(f"{address}/tool#sha256={DIGEST}", tmp_path / "downloads").read_bytes() == CONTENT
    assert asked == ["/tool", "/tool"]
    assert [each.name for each in (tmp_path / "downloads").iterdir()] == [DIGEST]


@pytest.mark.parametrize(
    "place",
    [
        *("{}/tool", "{}/tool#", "{}/tool#sha256=", "{}/tool#sha256=" + "g" * 64, "{}/tool#md5=" + "0" * 64),
        *("file:///etc/hostname#sha256=" + "0" * 64, "ftp://127.0.0.1/tool#sha256=" + "0" * 64),
    ],
)
def test_nothing_is_downloaded_without_a_checksum(site, tmp_path, place):
    address, asked = site
    with pytest.raises(SettingsError, match="is not downloaded: only http and https URLs that end in #sha256="):
        fetched(place.format(address), tmp_path / "downloads")
    assert asked == []
    assert not (tmp_path / "downloads").exists()


def test_something_else_than_the_checksum_says(site, tmp_path):
    address, _ = site
    with pytest.raises(SettingsError, match=f"has the SHA-256 {DIGEST}, not 0000"):
        fetched(f"{address}/tool#sha256={'0' * 64}", tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_download_that_fails(site, tmp_path, monkeypatch):
    address, _ = site
    for place in (
        f"{address}/none",
        "http://127.0.0.1:1/tool",
        "http://[bad/tool",
        "http://127.0.0.1:abc/",
        "http://a b/",
    ):
        with pytest.raises(SettingsError, match="cannot be downloaded: "):
            fetched(f"{place}#sha256={DIGEST}", tmp_path / "downloads")
    monkeypatch.setattr(downloads, "MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(SettingsError, match="has more than 8 bytes"):
        fetched(f"{address}/tool#sha256={DIGEST}", tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_server_that_does_not_speak_http(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"no HTTP at all\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SettingsError, match="cannot be downloaded: "):
            fetched(f"http://127.0.0.1:{server.getsockname()[1]}/tool#sha256={DIGEST}", tmp_path)
        thread.join()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_here(tmp_path):
    (tmp_path / "tool").write_bytes(CONTENT)
    assert fetched(str(tmp_path / "tool"), tmp_path / "downloads") == tmp_path / "tool"
    with pytest.raises(SettingsError, match="There is no file"):
        fetched(str(tmp_path), tmp_path / "downloads")
