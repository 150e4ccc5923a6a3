"""Reports as a browser shows them: on a phone and on a desktop, light and dark."""

import pytest
from page_checks import checked
from records_samples import changed, default_run, layers, manifest, spread_latency, variant

from mobileprune.report.compare import compare_runs, write_comparison
from mobileprune.report.html import write_html
from mobileprune.report.picture import browse, browser_missing, screenshot
from mobileprune.run_records import LayerFacts, Rejected, Stage

pytestmark = pytest.mark.skipif(bool(browser_missing()), reason=browser_missing())
WIDTHS = (390, 1280)
DARK = "--blink-settings=preferredColorScheme=0"
LONG = "a_name_that_is_long_" * 4


def odd_run():
    """A run that no report was made for: long names, odd letters, many models, many faults, a deep network."""
    names = [LONG, "$x$ & <b>", "名前モデル", "م_نموذج", *(f"m{number}" for number in range(8)), "control"]
    entries = [variant("base", "float32", file=f"{LONG}{LONG}.tflite", latency=(spread_latency(1.0, 1.0),))]
    for number, name in enumerate(names):
        for recipe in ("int8", LONG, "float16_sparse"):
            file = f"{LONG}_{number}_{recipe[:20]}.tflite"
            time = spread_latency(0.5 + 0.01 * number, 0.5)
            entries.append(variant(name, recipe, file=file, bytes=90_000 + number, latency=(time,), notes=(LONG * 3,)))
    deep = (*layers(blocks=50), LayerFacts(LONG * 2, "Conv2D", 9, 9, 10**9, 0.5))
    base = manifest(*entries)
    return changed(
        base,
        command=f"python pipelines/classify_mobile.py --dataset={LONG * 3} --model=net.keras",
        labels=tuple(f"class {number}" for number in range(300)),
        stages=(Stage("base", 1.0, layers=deep), *(Stage(name, 1.0, layers=deep) for name in names)),
        dataset={
            **base.dataset,
            "name": LONG,
            "source": LONG * 3,
            "skipped": [{"file": f"{LONG * 2}{number}.jpg", "reason": "it ends early"} for number in range(300)],
        },
        rejected=(Rejected(f"{LONG * 2}.tflite", f"Its outputs differ: {LONG * 4}"),),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_html(tmp_path_factory.mktemp("run"), default_run()).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_is_in_order(page, width):
    found = checked(page, width)
    assert found["problems"] == []
    assert found["width"] == width
    assert len(found["drawings"]) == 2 + 1 + 3 + 2 + 2
    assert found["texts"] > 500


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory):
    return write_html(tmp_path_factory.mktemp("odd"), odd_run()).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_of_an_odd_run_is_in_order(odd_page, width):
    assert checked(odd_page, width)["problems"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_is_in_order(tmp_path, width):
    found = compare_runs(default_run(), odd_run(), (LONG * 2, "b"))
    assert checked(write_comparison(tmp_path, found)[1].read_text(encoding="utf-8"), width)["problems"] == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("<p style='position:absolute;top:3rem;left:1rem'>in the way</p>", "text covers text"),
        ("<div style='width:2000px;height:9px'>wide</div>", "scrolls sideways"),
        ("<div style='position:absolute;left:-60px;top:9px'>gone</div>", "text leaves the page"),
        ("<p style='font-size:5px'>tiny</p>", "text of 5.0 pixels"),
        ("<svg viewBox='0 0 100 100' style='width:300px'></svg>", "an empty drawing"),
        (
            "<svg viewBox='0 0 300 100' style='width:300px'><text x='280' y='50'>too far</text></svg>",
            "text leaves its drawing",
        ),
        ("<figure style='margin-top:-9rem'>over</figure>", "boxes overlap"),
        ("<script>console.log('hello')</script>", "console: "),
        ("<img src='https://example.com/a.png' width='200' height='200'>", "console: "),
    ],
    ids=lambda value: value if not value.startswith("<") else "",
)
def test_a_planted_fault_is_noticed(page, planted, said):
    problems = checked(page.replace("<main>", f"<main>{planted}", 1), 390)["problems"]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_drawings_are_not_empty_in_light_and_dark(page, flags):
    found = checked(page, 390, flags)
    image = screenshot(page, 390, found["height"], flags)
    paper = sum(image.getpixel((2, 2)))
    assert (paper < 150) is bool(flags)
    for box in found["drawings"]:
        part = image.crop(tuple(round(box[side]) for side in ("left", "top", "right", "bottom")))
        colors = part.getcolors(1 << 24)
        background = max(colors)[0] / (part.width * part.height)
        assert len(colors) > 30
        assert background < 0.97


def test_it_can_be_printed(page, tmp_path):
    browse(page, [f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer"], 1280, 900)
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(content) > 50_000
