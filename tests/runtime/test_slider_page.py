"""The page of --report, as text and in a browser."""

import base64
import re
import shutil
from io import BytesIO

import av
import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.cli.main import app
from typer.testing import CliRunner


@pytest.fixture
def page(tmp_path, monkeypatch):
    from films import write_video

    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.towards(-1), default_steps=1)  # one step: all black
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(np.full((48, 64, 3), 250, np.uint8)).save(tmp_path / "in" / f'{i} <b>&".png')
    (tmp_path / "in" / "bad.png").write_bytes(b"no")
    write_video(tmp_path / "in" / "film.mp4", range(0, 200, 40))
    result = CliRunner().invoke(app, ["translate", "b", "in", "-o", "out", "--report", "page.html"])
    assert result.exit_code == 1, result.output
    return tmp_path / "page.html"


def test_the_page_needs_nothing_else_and_names_are_text(page):
    text = page.read_text(encoding="utf-8")
    assert text.count('type="range"') == 4 and "bad.png: not a readable image" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http" not in text.replace("http-equiv", "")
    assert "<b>" not in text and "0 &lt;b&gt;&amp;" in text


def test_only_an_earlier_page_is_replaced(page, tmp_path):
    def again(name):
        return CliRunner().invoke(app, ["translate", "b", "in", "-o", "out", "--report", name])

    assert again("page.html").exit_code == 1
    (tmp_path / "mine.html").write_text("mine")
    refused = again("mine.html")
    assert refused.exit_code == 2 and "no report of rfp" in refused.stderr
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_page_that_cannot_be_written_is_said_before_anything_is_translated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.towards(-1), default_steps=1)
    Image.new("RGB", (48, 64)).save(tmp_path / "a.png")
    refused = CliRunner().invoke(app, ["translate", "b", "a.png", "-o", "out", "--report", "a.png/page.html"])
    assert refused.exit_code == 2 and "a.png/page.html: no file can be made there" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["r2.txt", "report", "report.json", "a.png", ".html", ""])
def test_a_page_is_named_as_one_before_anything_is_translated(tmp_path, monkeypatch, name):
    """Any name was taken, and a browser shows r2.txt as text."""
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.towards(-1), default_steps=1)
    Image.new("RGB", (48, 64)).save(tmp_path / "a.png")
    refused = CliRunner().invoke(app, ["translate", "b", "a.png", "-o", "out", "--report", name])
    assert refused.exit_code == 2 and "--report wants a name that ends in .html" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"b", "a.png"}
    assert CliRunner().invoke(app, ["translate", "b", "a.png", "-o", "out", "--report", "R.HTM"]).exit_code == 0


@pytest.mark.extra
def test_the_slider_uncovers_the_input_in_chromium(page, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chrome.get(page.as_uri())
        loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length"
        assert chrome.execute_script(loaded) == 8
        pair = chrome.find_element("css selector", ".pair")

        def grey():
            import io

            with Image.open(io.BytesIO(pair.screenshot_as_png)) as image:
                pixels = np.asarray(image.convert("L"))
            h, w = pixels.shape
            return pixels[h // 2, w // 8], pixels[h // 2, 7 * w // 8]

        assert grey()[0] > 200 and grey()[1] < 60  # left half before, right half after
        slider = pair.find_element("css selector", "input")
        slider.send_keys("\ue010")  # End: all before
        assert min(grey()) > 200
        slider.send_keys("\ue011")  # Home: all after
        assert max(grey()) < 60
        assert not [e for e in chrome.get_log("browser") if e["level"] == "SEVERE"]
        chrome.save_screenshot(str(tmp_path / "page.png"))
    finally:
        chrome.quit()


def test_a_cut_and_compared_film_is_shown_from_where_it_begins_with_its_own_half(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.identity(), default_steps=1)
    with av.open("a.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(50):
            pixels = np.full((48, 64, 3), (200, 0, 0) if i < 25 else (0, 0, 200), np.uint8)
            pixels[:, :8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    args = ["b", "a.mp4", "-o", "out", "--start", "1.2", "--compare", "side", "--report", "r.html", "--size", "native"]
    result = CliRunner().invoke(app, ["translate", *args])
    assert result.exit_code == 0, result.output
    found = re.findall(r"base64,([^\"]+)", (tmp_path / "r.html").read_text())
    before, after = (np.asarray(Image.open(BytesIO(base64.b64decode(data))), dtype=float) for data in found)
    assert before.shape == after.shape == (48, 64, 3) and before[24, 40, 2] > 150 > before[24, 40, 0]
    assert np.abs(before - after).mean() < 6
