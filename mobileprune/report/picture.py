"""A run's report as a picture, taken by a headless browser: `python -m mobileprune.report.picture RUN OUT.png`.

It shows what was gained and the trade-offs, as a README wants them.
"""

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops

from mobileprune.errors import MobilePruneError, OutputError, SettingsError
from mobileprune.files import write_bytes

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A browser has this window at least, however small the one that is asked for: narrower pages go into a frame.
NARROWEST = 500
# Of a window's height the browser keeps some for bars that nobody sees.
_BARS = 200
_MOST_HEIGHT = 12_000
# What the picture leaves out.
_SHORT = "<style>nav, section:not(#gained):not(#trade-offs) { display: none !important }</style>"
# A page of text and plots has few colours: no eye sees the difference, and the file is a third.
_COLORS = 256


def browser_missing() -> str:
    """Why no picture can be taken; empty where one can.

    Example:
        >>> browser_missing()                                              # doctest: +SKIP
        ''
    """
    if _browser():
        return ""
    return f"None of {', '.join(BROWSERS)} is installed. Debian's package is called chromium."


def browse(page: str, flags: Sequence[str], width: int, height: int, timeout_s: float = 120.0) -> tuple[str, str]:
    """Opens a page in a headless browser.

    Args:
        page: its source.
        flags: what the browser is to do with it: `--dump-dom`, `--screenshot=…`.
        width: of the window in pixels.
        height: of the window in pixels.
        timeout_s: until it is given up.

    Returns:
        What the browser wrote to standard output, and to standard error: there the page's console is.

    Raises:
        SettingsError: no browser is installed.
        OutputError: it failed or hung.
    """
    if missing := browser_missing():
        raise SettingsError(missing)
    with tempfile.TemporaryDirectory(prefix="mobileprune_browser_", ignore_cleanup_errors=True) as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, encoding="utf-8")
        command = [
            *(_browser(), "--headless", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
            *("--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses to sandbox what root starts
            *(f"--window-size={width},{height}", *flags, source.as_uri()),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise OutputError(f"{command[0]} did not end within {timeout_s:.0f} s.") from error
    if done.returncode:
        last = " ".join(done.stderr.split()[-30:])
        raise OutputError(f"{command[0]} failed with exit code {done.returncode}: {last}")
    return done.stdout, done.stderr


def framed(page: str, width: int, height: int, script: str = "") -> str:
    """A page that shows another one in a frame of its own, which may be narrower than any window.

    Args:
        page: the source of the page inside.
        width: of the frame in pixels.
        height: of the frame in pixels.
        script: run outside the frame once the page inside is there.
    """
    run = f"<script>addEventListener('load', () => {{ {script} }})</script>" if script else ""
    return (
        "<!doctype html><meta charset='utf-8'><body style='margin:0;background:#fff'>"
        f"<iframe style='border:0;display:block;width:{width}px;height:{height}px' srcdoc=\"{html.escape(page)}\">"
        f"</iframe>{run}"
    )


def screenshot(page: str, width: int, height: int, flags: Sequence[str] = ()) -> Image.Image:
    """The upper part of a page as an image of `width` × `height` pixels."""
    with tempfile.TemporaryDirectory(prefix="mobileprune_browser_", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.png"
        shown = framed(page, width, height)
        browse(shown, [f"--screenshot={file}", *flags], max(width, NARROWEST), height + _BARS)
        if not file.exists():
            raise OutputError("The browser took no picture. Is its version old?")
        with Image.open(file) as image:
            return image.convert("RGB").crop((0, 0, width, height))


def write_picture(run: Path, out: Path, width: int = 1280) -> Path:
    """The summary of a run's report as a PNG.

    Args:
        run: a folder with `report.html`.
        out: the file to write.
        width: in pixels.

    Returns:
        `out`.

    Raises:
        SettingsError: no browser is installed, or the folder has no report.
        OutputError: the picture cannot be taken or written.
    """
    try:
        page = (run / "report.html").read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"Cannot read {run / 'report.html'}: {error.strerror or error}.") from error
    image = trimmed(screenshot(page.replace("</head>", f"{_SHORT}</head>", 1), width, _MOST_HEIGHT))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        image.quantize(_COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
        return write_bytes(out, file.read_bytes())


def trimmed(image: Image.Image, margin: int = 24) -> Image.Image:
    """The image without what is empty at its lower end.

    Raises:
        OutputError: there is nothing in it.
    """
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, empty).getbbox()
    if box is None:
        raise OutputError("The picture is empty: the page shows nothing.")
    return image.crop((0, 0, image.width, min(image.height, box[3] + margin)))


def _browser() -> str:
    return next((path for name in BROWSERS if (path := shutil.which(name))), "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Takes the picture of a run's report that a README shows.")
    parser.add_argument("run", type=Path, help="the run's folder, with report.html")
    parser.add_argument("out", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    try:
        out = write_picture(arguments.run, arguments.out)
    except MobilePruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"Wrote {out}, {out.stat().st_size / 1000:.0f} kB.")


if __name__ == "__main__":
    main()
