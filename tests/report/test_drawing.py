import html
import re

import pytest

from mobileprune.report.drawing import COLORS, page_svg, plain_text, svg


def test_the_same_drawing_is_the_same_element():
    def line(end):
        return svg((3, 2), lambda figure, axes: axes.plot([1, end], label="line"))

    assert line(2) == line(2) != line(3)
    assert line(2).startswith("<svg")
    assert line(2).rstrip().endswith("</svg>")


def test_a_pages_drawings_share_no_ids_and_have_its_colours():
    def line(name):
        def draw(figure, axes):
            axes.plot([1, 2], color=COLORS[0], gid="point")
            axes.set_title('an id="axes_1" of #0072b2')

        return page_svg(name, (3, 2), draw, "A <line>", {"point": "1 & 2"})

    one, other = line("one"), line("other")
    ids = [re.findall(r'\bid="([^"]*)"', re.sub(r">[^<]*<", "><", drawing)) for drawing in (one, other)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert len(ids[0]) == len(set(ids[0]))
    used = {*re.findall(r'href="#([^"]*)"', one), *re.findall(r"url\(#([^)]*)\)", one)}
    assert used
    assert used <= set(ids[0])
    assert "stroke: var(--c0)" in one
    assert COLORS[0] not in re.sub(r">[^<]*<", "><", one)
    assert 'an id="axes_1" of #0072b2' in html.unescape(one)
    assert "<title>1 &amp; 2</title>" in one
    assert 'aria-label="A &lt;line&gt;"' in one


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("short", 10, "short"),
        ("block_17_expand", 10, "block…pand"),
        ("a\x1bb\nc", 10, "a\ufffdb\ufffdc"),
        ("$a$", 3, "$a$"),
    ],
)
def test_long_and_odd_text_is_made_to_fit(text, most, shown):
    assert plain_text(text, most) == shown
    assert len(plain_text(text, most)) <= most
