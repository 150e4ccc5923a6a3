import re
from html.parser import HTMLParser

import pytest
from records_samples import changed, manifest, variant

from mobileprune.report.html import plot, write_html
from mobileprune.report.markdown import table_head, table_row
from mobileprune.run_records import Rejected

BASE = variant("base", "float32", bytes=800_000)
SMALL = variant("c50", "int8", ms=0.5, bytes=100_000, accuracy=0.885)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.cells = [], "", [[]]
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])

    def handle_data(self, data):
        self.text += data
        if data.strip() and self.elements and self.elements[-1][0] in {"td", "th"}:
            self.cells[-1].append(data)

    def tags(self):
        return {tag for tag, _ in self.elements}


def source(tmp_path, made):
    path = write_html(tmp_path, made)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


def outside(text):
    """Everything in a page that a browser would fetch."""
    found = []
    for tag, attributes in Page(text).elements:
        for name, value in attributes.items():
            local = tag == "use" or name.startswith("xmlns") or (value or "").startswith(("#", "data:"))
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"} and not local:
                found.append(value)
        if tag in {"script", "link", "iframe", "object", "embed", "base"}:
            found.append(tag)
    found += [url for url in re.findall(r"url\(\s*['\"]?([^)]*)", text) if not url.startswith(("#", "data:"))]
    return found + re.findall(r"@import[^;]*", text)


def test_the_page_needs_no_network(tmp_path):
    assert outside(source(tmp_path, manifest(BASE, SMALL))) == []


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="style.css">',
        '<img src="http://example.com/a.png">',
        "<style>body { background: url(https://example.com/a.png) }</style>",
        '<style>@import "other.css";</style>',
    ],
)
def test_a_planted_reference_to_the_network_is_noticed(tmp_path, planted):
    assert outside(source(tmp_path, manifest(BASE)).replace("</html>", f"{planted}</html>"))


def test_the_table_holds_every_cell(tmp_path):
    made = manifest(BASE, SMALL)
    cells = Page(source(tmp_path, made)).cells
    # The narrower columns of model and recipe say what the file's name does.
    assert ["model", "recipe", *table_head(made, loading=True)[1:]] in cells
    for entry in made.variants:
        assert [entry.model, entry.recipe, *table_row(entry, BASE, loading=True)[1:]] in cells


def test_recommended_files_are_shaded(tmp_path):
    made = manifest(BASE, SMALL, recommended={"smallest": SMALL.file, "most_accurate": SMALL.file})
    text = source(tmp_path, made)
    assert re.findall(r'<tr class="recommended"><td title="([^"]*)"', text) == [SMALL.file]


def test_there_is_a_plot_for_size_and_one_for_latency(tmp_path):
    assert sum(tag == "svg" for tag, _ in Page(source(tmp_path, manifest(BASE, SMALL))).elements) == 2
    untimed = [changed(entry, latency=()) for entry in (BASE, SMALL)]
    text = source(tmp_path, manifest(*untimed))
    assert sum(tag == "svg" for tag, _ in Page(text).elements) == 1
    assert "failed" in text


def test_a_plot_names_axes_models_and_recipes():
    made = manifest(BASE, SMALL)
    drawing = plot(made, list(made.variants), [800.0, 100.0], "size, kB")
    assert drawing.startswith("<svg")
    for words in ("size, kB", "test accuracy, %", "base", "c50", "float32", "int8"):
        assert f">{words}<" in drawing


def test_a_plot_without_labels_shows_agreement():
    entry = changed(BASE, accuracy=None, validation_accuracy=None, agreement=0.9)
    assert ">top-1 agreement, %<" in plot(manifest(entry), [entry], [1.0], "size, kB")


def test_the_same_run_gives_the_same_plot():
    made = manifest(BASE, SMALL)
    drawings = {plot(made, list(made.variants), [800.0, 100.0], "size, kB") for _ in range(2)}
    assert len(drawings) == 1


def test_hostile_names_are_text(tmp_path):
    base = manifest(BASE)
    dataset = {
        **base.dataset,
        "name": HOSTILE,
        "source": HOSTILE,
        "skipped": [{"file": f"{HOSTILE}.jpg", "reason": HOSTILE}],
    }
    entry = changed(BASE, file=f"{HOSTILE}.tflite")
    made = manifest(
        entry,
        dataset=dataset,
        labels=(HOSTILE, "dog"),
        command=HOSTILE,
        host={**base.host, "device": HOSTILE},
        rejected=(Rejected(HOSTILE, HOSTILE),),
        recommended={"smallest": entry.file, "most_accurate": entry.file},
    )
    page = Page(source(tmp_path, made))
    assert not page.tags() & {"script", "img"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 8


def test_hostile_model_names_are_text_in_plots_too(tmp_path):
    # A model's name becomes a plot's legend.
    page = Page(source(tmp_path, manifest(BASE, changed(SMALL, model=HOSTILE))))
    assert not page.tags() & {"script", "img"}
    assert HOSTILE in page.text


def test_a_control_that_wins_is_said_to_win(tmp_path):
    entries = [variant("c50", "float32", accuracy=0.5), variant("control", "float32", accuracy=0.9)]
    text = source(tmp_path, manifest(BASE, *entries))
    assert "The narrower network wins:" in text
    assert "**" not in text


def test_rejected_files_and_skipped_images_are_named(tmp_path):
    base = manifest(BASE)
    made = manifest(
        BASE,
        rejected=(Rejected("net_c50_int8.tflite", "too noisy"),),
        dataset={**base.dataset, "skipped": [{"file": "cat/broken.jpg", "reason": "it ends early"}]},
    )
    text = Page(source(tmp_path, made)).text
    for said in ("net_c50_int8.tflite", "too noisy", "cat/broken.jpg", "it ends early"):
        assert said in text


def test_it_reads_on_a_phone_in_the_dark_and_in_print(tmp_path):
    text = source(tmp_path, manifest(BASE))
    assert 'name="viewport"' in text
    assert "color-scheme: light dark" in text
    assert "@media print" in text
