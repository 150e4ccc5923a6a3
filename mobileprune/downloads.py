"""Files from the network, each by its checksum: nothing is fetched that is not known beforehand."""

import hashlib
import http.client
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from mobileprune.errors import SettingsError
from mobileprune.files import file_digest

MOST_BYTES = 1 << 29
PIECE = 1 << 20


def fetched(place: str, folder: Path, *, timeout_s: float = 60.0) -> Path:
    """A file by its path, or by a URL that ends in `#sha256=…` and is downloaded once.

    Args:
        place: the path or URL.
        folder: where downloads stay, under their checksums.
        timeout_s: seconds without an answer after which a download is given up.

    Returns:
        The file.

    Raises:
        SettingsError: there is no such file, the URL has no checksum, nothing can be downloaded, or something else than
            the checksum says.

    Example:
        >>> fetched("https://example.com/tool#sha256=" + "0" * 64, Path("tools"))  # doctest: +SKIP
        PosixPath('tools/0000000000000000000000000000000000000000000000000000000000000000')
    """
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", place):
        path = Path(place)
        if not path.is_file():
            raise SettingsError(f"There is no file {place}.")
        return path
    url, _, fragment = place.partition("#")
    matched = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not matched or not url.startswith(("https://", "http://")):
        raise SettingsError(
            f"{place} is not downloaded: only http and https URLs that end in #sha256= and 64 digits are."
        )
    digest = matched[1].lower()
    target = folder / digest
    if target.is_file() and file_digest(target) == digest:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
            arriving = Path(name) / digest
            found = _download(url, arriving, timeout_s)
            if found != digest:
                raise SettingsError(f"{url} has the SHA-256 {found}, not {digest}: it is not used.")
            arriving.replace(target)
    # urllib's errors are OSErrors; a URL may be none, and a server may not speak HTTP.
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise SettingsError(f"{url} cannot be downloaded: {reason}.") from error
    return target


def _download(url: str, into: Path, timeout_s: float) -> str:
    """The SHA-256 of what the URL had."""
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=timeout_s) as answer, into.open("wb") as file:
        while piece := answer.read(PIECE):
            size += len(piece)
            if size > MOST_BYTES:
                raise SettingsError(f"{url} has more than {MOST_BYTES:,} bytes.")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()
