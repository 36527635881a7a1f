"""The page in a browser without a window: drawn, watched, compared, varied, painted over, reloaded, brought back.

Slow: `.venv/bin/python -m pytest -m slow tests/star/demo`, with the extra demo-test and a Chromium installed.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star.pictures.record import Record
from star.pipeline import Pipeline
from tests.star.demo.serving import Served, needs_gradio, serving

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    needs_gradio()
    with serving() as page:
        yield page


@pytest.fixture
def tab(served: Served) -> Iterator[Any]:
    """A tab at the page; at its end nothing was asked of another host and nothing was complained of."""
    api = pytest.importorskip("playwright.sync_api", reason="the page is driven by playwright, of the extra demo-test")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"there is no Chromium to drive: {str(error).splitlines()[0]}")
        context = browser.new_context(viewport={"width": 1300, "height": 1000}, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        outside: list[str] = []
        own = (served.url, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#draw")
        yield page
        browser.close()
        assert outside == []
        assert complaints == []


def fill(page: Any, place: str, text: str) -> None:
    page.fill(f"#{place} textarea, #{place} input", text)


def field(page: Any, place: str) -> str:
    value: str = page.input_value(f"#{place} textarea, #{place} input")
    return value


def drawn(page: Any, text: str) -> list[str]:
    """Draws, and gives everything that the status said until it says `text`."""
    page.evaluate(
        """() => { window.said = []; const status = document.querySelector('#status');
        new MutationObserver(() => window.said.push(status.innerText)).observe(
            status, {childList: true, subtree: true, characterData: true}); }"""
    )
    page.click("#draw")
    page.wait_for_function("text => document.querySelector('#status').innerText.includes(text)", arg=text)
    said: list[str] = page.evaluate("() => window.said")
    return said


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def download(page: Any, to: Path) -> Path:
    with page.expect_download() as found:
        page.click("#download")
    found.value.save_as(to)
    return to


def test_everything_once(tab: Any, served: Served, tmp_path: Path) -> None:
    fill(tab, "prompt", "a red circle")
    fill(tab, "seed", "5")
    said = drawn(tab, "seed 5, drawn with star-test")
    scales = {int(found[1]) for text in said if (found := re.search(r"scale (\d+) of", text))}
    assert len(scales) >= 3  # it was seen to grow; a slow eye may miss one
    first = download(tab, tmp_path / "first.png")
    wanted = Pipeline.from_pretrained("star-test")("a red circle", seed=5)
    assert np.array_equal(pixels(first), np.asarray(wanted.images[0]))

    tab.get_by_label("stylegan-t-test").check()  # side by side
    drawn(tab, "drawn with star-test, stylegan-t-test")
    assert tab.locator("#slot-0 img").is_visible()
    assert tab.locator("#slot-1 img").is_visible()
    assert tab.locator("#gallery button.thumbnail-item, #gallery .grid-container button").count() == 3

    tab.get_by_role("tab", name="Variations").click()
    tab.click("#vary")
    tab.wait_for_function("() => document.querySelectorAll('#variations img').length >= 4")

    tab.get_by_role("tab", name="Inpainting").click()
    canvas = tab.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)  # the editor lays its picture out
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + 30, middle[1] + 10, steps=5)
    tab.mouse.up()
    tab.wait_for_timeout(500)
    tab.click("#inpaint")
    tab.wait_for_selector("#inpainted img")
    assert "drawn anew by star-test" in tab.inner_text("#status")

    tab.reload()
    tab.wait_for_function(
        "() => [...document.querySelectorAll('#prompt textarea')].some(area => area.value === 'a red circle')"
    )
    assert field(tab, "seed") == "5"
    assert tab.get_by_label("stylegan-t-test").is_checked()
    tab.wait_for_function("() => document.querySelectorAll('#gallery img').length === 8")

    fill(tab, "prompt", "something else")
    fill(tab, "seed", "")
    tab.set_input_files("#drop input[type=file]", str(first))
    tab.wait_for_function("() => document.querySelector('#status').innerText.includes('settings of')")
    assert (field(tab, "prompt"), field(tab, "seed")) == ("a red circle", "5")
    assert not tab.get_by_label("stylegan-t-test").is_checked()
    drawn(tab, "seed 5, drawn with star-test")
    assert np.array_equal(pixels(download(tab, tmp_path / "again.png")), pixels(first))
    assert Record.read(tmp_path / "again.png").same_picture(Record.read(first))


def test_a_narrow_window_shows_all_of_it(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.wait_for_timeout(300)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert tab.locator("#draw").is_visible()


def test_a_mistake_is_shown_as_a_sentence(tab: Any) -> None:
    fill(tab, "seed", "many")
    tab.click("#draw")
    tab.get_by_text("seed is 'many', expected a number").first.wait_for()


def test_only_this_machine_and_its_own_things(served: Served) -> None:
    import urllib.request

    with urllib.request.urlopen(served.url, timeout=60) as answer:
        policy = answer.headers["content-security-policy"]
        text = answer.read().decode()
    assert "default-src 'self'" in policy
    assert "fonts.googleapis" not in text
