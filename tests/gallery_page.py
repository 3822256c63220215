"""The gallery in a browser, as a visitor sees and uses it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LEFT, RIGHT, ESCAPE = "\ue012", "\ue014", "\ue00c"
THIRD = "#cards li:nth-child(3)"


class Gallery:
    """A page in the browser: what a visitor sees and does."""

    def __init__(self, browser: Any, page: Path) -> None:
        self.browser, self.page = browser, page
        self.open()

    def open(self, place: str = "") -> None:
        # From a blank page: another place alone would not load the page again.
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.browser.get(self.page.as_uri() + place)
        # The rows are unpacked after the page has loaded.
        shown = "return performance.getEntriesByName('first page').length"
        self.wait(lambda: self.run(shown))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.run(script, selector)

    def ids(self) -> list[str]:
        return [name.partition(" · ")[0] for name in self.texts("#cards .name")]

    def summary(self) -> str:
        return self.texts("#summary")[0]

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def drag(self, selector: str, by: int) -> None:
        from selenium.webdriver import ActionChains

        moves = ActionChains(self.browser, duration=20).move_to_element(self.find(selector))
        moves.click_and_hold().move_by_offset(by, 0).release().perform()

    def choose(self, selector: str, value: str) -> None:
        script = """const [selector, value] = arguments;
        const field = document.querySelector(selector);
        field.value = value;
        field.dispatchEvent(new Event("change", {bubbles: true}));"""
        self.run(script, selector, value)

    def search(self, text: str) -> None:
        field = self.find("#search")
        field.clear()
        field.send_keys(text)
        said = "return new URLSearchParams(location.hash.slice(1)).get('q')"
        self.wait(lambda: self.run(said) == text)

    def wait_for_pictures(self, selector: str) -> None:
        loaded = """return [...document.querySelectorAll(arguments[0] + " img:not([hidden])")]
        .every((image) => image.naturalWidth)"""
        self.wait(lambda: self.run(loaded, selector))

    def wait(self, condition: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: condition())

    def pictures(self, selector: str) -> list[str]:
        """The kinds of pictures that are shown, in their order."""
        kinds = """return [...document.querySelectorAll(arguments[0] + " img:not([hidden])")]
        .map((image) => image.className)"""
        return self.run(kinds, selector)

    def level(self, at: float) -> int:
        """The red on the screen in the third card's picture, `at` of its width from the left."""
        return int(self.colour(THIRD, at)[0])

    def colour(self, card: str, at: float) -> np.ndarray:
        """The colour on the screen in a card's picture, `at` of its width from the left."""
        self.wait_for_pictures(card)
        shot = self.find(f"{card} .frame").screenshot_as_png
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
        return pixels[len(pixels) // 4, int(at * pixels.shape[1])].astype(float)

    def is_large(self) -> bool:
        return self.run("return document.querySelector('dialog').open")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "index.html"


def picture(level: int) -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(np.full((30, 40, 3), level, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
