"""The page in a real browser. Without chromium these tests are skipped; under CI they fail then."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.serving import Served, serving, wait_until

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        message = f"no {' and no '.join(missing)} here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


def find(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def state(browser: Any) -> str:
    return find(browser, "#document")[0].get_attribute("data-state")


def open_page(browser: Any, served: Served) -> None:
    browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{served.port}/")
    wait_until(lambda: find(browser, "#examples button"))
    set_value(browser, "seed", "7")


def set_value(browser: Any, name: str, value: str) -> None:
    browser.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, value)


def picture_of(element: Any) -> np.ndarray:
    data = base64.b64decode(element.get_attribute("src").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), int)


def test_an_example_becomes_a_document(browser: Any, served: Served, tmp_path: Path) -> None:
    open_page(browser, served)
    find(browser, "#examples button")[0].click()
    wait_until(lambda: state(browser) == "finished")
    words = [element.text for element in find(browser, "#document .words")]
    assert len(words) >= 2
    assert all(word.startswith("Put a") for word in words)
    pictures = find(browser, "#document img")
    assert len(pictures) == len(words)
    for picture in pictures:
        pixels = picture_of(picture)
        assert (pixels[..., 3] == 255).all(), "a finished picture is drawn everywhere"
        assert pixels[..., :3].std() > 5, "and is not blank"
        assert picture.get_attribute("alt") in words
        assert picture.value_of_css_property("image-rendering") == "pixelated"
        assert picture.size["width"] > 100
    status = find(browser, "#status")[0].text
    assert "tokens/s" in status
    assert "seed 7" in status
    shown = np.asarray(Image.open(io.BytesIO(pictures[-1].screenshot_as_png)).convert("RGB"), int)
    assert shown.std() > 5, "what the browser shows is not blank either"
    assert served.engine.statistics().finished == 1
    assert browser.get_log("browser") == []
    # Its last picture is edited, and described.
    find(browser, "#document .use:enabled")[-1].click()
    find(browser, "#examples button")[0].click()
    wait_until(lambda: "column" in "".join(e.text for e in find(browser, "#document .words")))
    wait_until(lambda: state(browser) == "finished")
    assert not find(browser, "#document img")
    assert browser.get_log("browser") == []


def test_stop_aborts_the_request(browser: Any, blocks: tuple[Any, Any]) -> None:
    with serving(*blocks, steps=12) as served:  # the engine stands in the first picture
        open_page(browser, served)
        find(browser, "#examples button")[1].click()
        wait_until(lambda: find(browser, "#document .frame img"))
        assert state(browser) == "running"
        pixels = picture_of(find(browser, "#document img")[0])
        assert set(np.unique(pixels[..., 3])) == {0, 255}, "drawn above, transparent below"
        [job] = served.service.jobs
        find(browser, "#stop")[0].click()
        wait_until(lambda: state(browser) == "stopped")
        wait_until(lambda: job.cause == "left")
        served.gate.open()
        wait_until(served.is_empty)
        assert served.engine.statistics().aborted == 1
        assert "stopped after" in find(browser, "#status")[0].text
        assert find(browser, "#stop")[0].get_attribute("disabled")


def test_keys_start_and_stop(browser: Any, blocks: tuple[Any, Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    with serving(*blocks, steps=0) as served:
        open_page(browser, served)
        find(browser, "#prompt")[0].send_keys(Keys.ENTER)
        wait_until(lambda: len(served.service.jobs) == 1)
        [job] = served.service.jobs
        find(browser, "#prompt")[0].send_keys(Keys.ESCAPE)
        wait_until(lambda: state(browser) == "stopped")
        wait_until(lambda: job.cause == "left")


def test_the_servers_sentence_is_shown(browser: Any, served: Served) -> None:
    open_page(browser, served)
    set_value(browser, "temperature", "-1")
    find(browser, "#start")[0].click()
    wait_until(lambda: state(browser) == "failed")
    assert (
        find(browser, "#error")[0].text == "image.temperature=-1.0 is out of range: it must be at least 0, and finite"
    )
    served.service.stop()
    find(browser, "#start")[0].click()
    wait_until(lambda: "shutting down" in find(browser, "#error")[0].text)
