import pytest
from PIL import Image
from records_samples import default_run

from mobileprune.errors import OutputError, SettingsError
from mobileprune.report.html import write_html
from mobileprune.report.picture import browser_missing, screenshot, trimmed, write_picture

needs_browser = pytest.mark.skipif(bool(browser_missing()), reason=browser_missing())


@needs_browser
def test_the_picture_of_a_report_is_small_and_shows_it(tmp_path):
    write_html(tmp_path, default_run())
    out = write_picture(tmp_path, tmp_path / "report.png")
    assert out.stat().st_size < 300_000
    with Image.open(out) as image:
        assert image.width == 1280
        assert 600 < image.height < 2500
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


@needs_browser
def test_a_page_is_as_wide_as_it_is_asked_to_be():
    # Narrower than any window of the browser: the right half would be cut off or left white.
    page = "<body style='margin:0'><div style='height:50px;background:linear-gradient(90deg,red 50%,blue 50%)'></div>"
    image = screenshot(page, 390, 100)
    assert image.size == (390, 100)
    assert [image.getpixel((x, 20)) for x in (10, 180, 210, 380)] == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 2
    assert image.getpixel((200, 80)) == (255, 255, 255)
    assert screenshot("<body style='background:red;height:580px'>", 390, 600).getpixel((380, 590)) == (255, 0, 0)


def test_without_a_browser_it_says_which_package_has_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "package is called chromium" in browser_missing()
    (tmp_path / "report.html").write_text("<p>report")
    with pytest.raises(SettingsError, match="chromium"):
        write_picture(tmp_path, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_browser_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho 'no display' >&2\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OutputError, match="exit code 7: no display"):
        screenshot("<p>report", 390, 100)


def test_a_browser_that_takes_no_picture_is_one_clear_error(tmp_path, monkeypatch):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OutputError, match="no picture"):
        screenshot("<p>report", 390, 100)


def test_a_folder_without_a_report_is_one_clear_error(tmp_path):
    with pytest.raises(SettingsError, match=r"Cannot read .*report\.html"):
        write_picture(tmp_path, tmp_path / "out.png")


def test_what_is_empty_below_is_cut_off_and_an_empty_page_refused():
    image = Image.new("RGB", (100, 500), "white")
    with pytest.raises(OutputError, match="empty"):
        trimmed(image)
    image.putpixel((50, 99), (0, 0, 0))
    assert trimmed(image, margin=20).size == (100, 120)
