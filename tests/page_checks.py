"""What is wrong with a page at some width, as a headless browser sees it."""

import html
import json
import re
from pathlib import Path

from mobileprune.report.picture import NARROWEST, browse, framed

SCRIPT = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")


def checked(page: str, width: int, flags: tuple[str, ...] = ()) -> dict:
    """What the browser found: `problems` as sentences, and facts of the page.

    A problem is text that covers text or leaves the page or its drawing, boxes that overlap, a page wider than the
    window, text too small to read, an empty drawing, a message on the console. Looked at twice: with all details
    closed and open.
    """
    shown = framed(page, width, 900, SCRIPT)
    dom, log = browse(shown, ["--dump-dom", *flags], max(width, NARROWEST), 900)
    found = re.search(r'<pre id="findings">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    facts = json.loads(html.unescape(found[1]))
    facts["problems"] += [f"console: {line}" for line in re.findall(r"CONSOLE[^\]]*\] (.*)", log)]
    return facts
