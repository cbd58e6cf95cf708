"""The drawing page in a real browser (headless Chromium by Selenium): draw with the mouse, look, teach, use the keys.

Without a browser or Selenium these tests skip and say so: `pip install -e ".[browser]"`, and Chromium with its driver.
"""

import re
import shutil
import threading

import pytest

from tinycnn import Sequential, load_mnist
from tinycnn.server import make_server
from tinycnn.studio import Studio
from tinycnn.trained import TRAINED

selenium = pytest.importorskip("selenium", reason="Selenium is not installed (extra browser)")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("there is no Chromium with its driver here", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

STROKES = {  # of a canvas of 100 × 100
    1: [[(50, 15), (50, 85)]],
    7: [[(25, 18), (75, 18), (45, 85)]],
    0: [[(50, 12), (30, 25), (26, 50), (32, 75), (50, 86), (68, 75), (74, 50), (70, 25), (50, 12)]],
}


@pytest.fixture(scope="module")
def address():
    server = make_server(Studio(Sequential.load(TRAINED), load_mnist()[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, address):
    """The page, just opened; and no error in its console when the test is over."""
    chromium.set_window_size(1200, 900)
    chromium.get(address)
    wait(chromium, lambda d: d.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "yes")
    yield chromium
    chromium.execute_script("fetch('/reset', {method: 'POST', body: '{}'})")
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait(driver, condition):
    return WebDriverWait(driver, 20).until(condition)


def draw(page, digit: int) -> None:
    canvas = page.find_element(By.ID, "draw")
    scale = canvas.size["width"] / 100
    for stroke in STROKES[digit]:
        chain = ActionChains(page, duration=20)
        points = [(round((x - 50) * scale), round((y - 50) * scale)) for x, y in stroke]
        chain.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        for point in points[1:]:
            chain.move_to_element_with_offset(canvas, *point)
        chain.release().perform()


def answer(page) -> str:
    return page.find_element(By.ID, "answer").text


def inked(page, canvas: str) -> int:
    """How many different colours a canvas has."""
    return page.execute_script(
        "const c = document.getElementById(arguments[0]);"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return new Set(new Uint32Array(d.buffer)).size",
        canvas,
    )


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_recognised_and_looked_into(page, digit):
    draw(page, digit)
    wait(page, lambda d: f"It is a {digit}" in answer(d))
    for canvas in ("seen", "saliency", "layer-0", "layer-1", "layer-5", "layer-15", "layer-16"):
        assert inked(page, canvas) > 2, canvas
    assert page.find_element(By.CSS_SELECTOR, ".bar.best span").text == str(digit)
    page.find_element(By.ID, "clear").click()
    wait(page, lambda d: "Nothing drawn" in answer(d))
    assert inked(page, "draw") == inked(page, "seen") == inked(page, "glance") == 1


def test_undo_takes_the_last_stroke(page):
    draw(page, 1)
    wait(page, lambda d: "It is a 1" in answer(d))
    draw(page, 0)
    wait(page, lambda d: "It is a 1" not in answer(d))
    page.find_element(By.ID, "undo").click()
    wait(page, lambda d: "It is a 1" in answer(d))


def test_pointing_at_a_feature_shows_its_field_and_its_sum(page):
    draw(page, 7)
    wait(page, lambda d: "It is a 7" in answer(d))
    layer = page.find_element(By.ID, "layer-1")
    ActionChains(page).scroll_to_element(layer).move_to_element_with_offset(layer, 20, 3).perform()
    wait(page, lambda d: "conv2d_2" in d.find_element(By.ID, "place").text)
    assert "It sees 5 × 5 pixels" in page.find_element(By.ID, "place").text
    assert inked(page, "field") > 1
    numbers = page.execute_script(
        "return [...document.querySelectorAll('#sum table')]"
        ".map(table => [...table.querySelectorAll('td')].map(cell => +cell.textContent))"
    )
    assert [len(table) for table in numbers] == [25, 25, 25]
    total = page.find_elements(By.CSS_SELECTOR, "#sum .sign")[-1].text
    _, products, _, bias, _, result = total.replace("+ bias", "+").split()
    assert float(products) + float(bias) == pytest.approx(float(result), abs=2e-3)
    assert sum(numbers[2]) == pytest.approx(float(products), abs=25 * 0.005 + 1e-3)
    shown = re.search(r"about (-?[\d.]+\d)", page.find_element(By.ID, "place").text)
    assert float(shown[1]) == pytest.approx(float(result), abs=0.05)
    page.find_element(By.ID, "clear").click()
    wait(page, lambda d: d.find_element(By.ID, "place").text.startswith("Point at a pixel"))
    assert page.find_element(By.ID, "sum-title").text.startswith("Point at a pixel")


def test_what_a_pixel_sees_is_in_sight_while_a_deep_layer_is_pointed_at(page):
    draw(page, 7)
    wait(page, lambda d: "It is a 7" in answer(d))
    plain = inked(page, "glance")
    layer = page.find_element(By.ID, "layer-14")
    ActionChains(page).scroll_to_element(layer).move_to_element_with_offset(layer, 20, 20).perform()
    wait(page, lambda d: "relu_15" in d.find_element(By.ID, "near-place").text)
    assert inked(page, "glance") > plain > 2
    for name in ("glance", "near-place"):
        top, bottom = page.execute_script(
            "const box = document.getElementById(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]",
            name,
        )
        assert 0 <= top < bottom <= page.execute_script("return innerHeight")


def test_teaching_changes_the_answer_and_reset_returns_it(page):
    draw(page, 7)
    wait(page, lambda d: "It is a 7" in answer(d))
    page.execute_script("chosen = { number: 1, c: 7, i: 7, j: 10 }; point(); chosen = { number: 5, c: 1, i: 1, j: 1 };")
    sums = "return document.getElementById('sum').textContent"
    before = page.execute_script(sums)
    page.find_element(By.CSS_SELECTOR, "#teach button:nth-child(5)").click()
    wait(page, lambda d: "It is a 4" in answer(d))
    assert page.execute_script(sums) != before  # with the new weights, though another layer is pointed at
    assert "Probability of 4 after each step" in page.find_element(By.ID, "course").text
    page.find_element(By.ID, "reset").click()
    wait(page, lambda d: "It is a 7" in answer(d))


def test_another_class_has_another_saliency(page):
    draw(page, 7)
    wait(page, lambda d: "It is a 7" in answer(d))
    picture = "return document.getElementById('saliency').toDataURL()"
    before = page.execute_script(picture)
    page.find_element(By.CSS_SELECTOR, "#class option[value='3']").click()
    wait(page, lambda d: d.execute_script(picture) != before)


def test_everything_can_be_done_with_the_keyboard(page):
    canvas = page.find_element(By.ID, "draw")
    canvas.send_keys(*[Keys.ARROW_UP] * 12, Keys.SPACE, *[Keys.ARROW_DOWN] * 24, Keys.SPACE)
    wait(page, lambda d: "It is a 1" in answer(d))
    page.find_element(By.ID, "layer-1").send_keys(Keys.PAGE_DOWN, *[Keys.ARROW_RIGHT] * 10, *[Keys.ARROW_DOWN] * 10)
    wait(page, lambda d: "channel 1, row 10, column 10" in d.find_element(By.ID, "place").text)
    canvas.send_keys(Keys.DELETE)
    wait(page, lambda d: "Nothing drawn" in answer(d))


def test_the_pen_is_up_after_a_test_image(page):
    """The one with which the keyboard draws."""
    page.find_element(By.ID, "draw").send_keys(Keys.SPACE)
    wait(page, lambda d: "It is a" in answer(d))
    dot = answer(page)
    page.find_element(By.ID, "sample").click()
    wait(page, lambda d: "It is a" in answer(d) and answer(d) != dot)
    before = answer(page)
    assert re.search(r"Its label is \d\.$", before)
    page.find_element(By.ID, "draw").send_keys(*[Keys.ARROW_DOWN] * 9)
    assert answer(page) == before
    page.find_element(By.ID, "draw").send_keys(Keys.SPACE)  # what is drawn over is not a test image any more
    wait(page, lambda d: "It is a" in answer(d) and "label" not in answer(d))


def test_it_fits_a_phone(page):
    page.set_window_size(500, 900)  # the narrowest that Chromium has
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.refresh()
        wait(page, lambda d: d.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "yes")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        layer = "document.getElementById('layer-1')"
        assert page.execute_script(f"return {layer}.clientWidth / {layer}.width") > 1  # no number of it is lost
        draw(page, 1)
        wait(page, lambda d: "It is a 1" in answer(d))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
