"""The gallery in a real browser, opened from the disk as a double click does."""

import io
import shutil
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import SRGB
from PIL import Image

from uam_jax.io.encoding import encode_image, encode_preview, needs_shown_copy
from uam_jax.io.formats import WRITTEN
from uam_jax.io.images import Picture, quietly
from uam_jax.jobs.report import render_report

pytestmark = pytest.mark.browser

LEFT, RIGHT, ESCAPE = "\ue012", "\ue014", "\ue00c"
THIRD = "#cards li:nth-child(3)"
HOSTILE = "<img src=x onerror='document.title=\"hacked\"'></script>\u2028\x00"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium or Chrome with its chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--disable-gpu", "--no-sandbox", "--window-size=1300,950"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, or selenium would look for one on the network.
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


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
        """What is on the screen in a card's picture, `at` of its width from the left."""
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


def fixed(*values: float) -> bytes:
    """Numbers as ICC profiles hold them."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile_of(kind: str) -> bytes | None:
    """No profile, Display P3's primaries, or a grey one of gamma 1.4."""
    if kind == "wide":
        profile = bytearray(SRGB)
        profile[84:100] = bytes(16)  # its checksum
        primaries = {
            b"rXYZ": (0.51512, 0.2412, -0.00105),
            b"gXYZ": (0.29198, 0.69225, 0.04189),
            b"bXYZ": (0.1571, 0.06657, 0.78407),
        }
        for number in range(int.from_bytes(profile[128:132])):
            name, at, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
            if name in primaries:
                profile[at + 8 : at + 20] = fixed(*primaries[name])
        return bytes(profile)
    if kind == "grey":
        white = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.4 * 256)) + bytes(2)
        tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
        head = struct.pack(
            ">I4sI4s4s4s12x4s", 192, b"test", 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp"
        )
        return head + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48) + tags + white + curve
    return None


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows of which 7 and 31 failed; the names hold what addresses and HTML give a meaning."""
    folder = tmp_path_factory.mktemp("a job #1 100%")
    rows: list[dict[str, Any]] = []
    files = {}
    for i in range(60):
        name = f"{i} #% é\"'&"
        values: dict[str, Any] = {"id": f"id {i}", "status": "ok", "image": f"{name}.jpg"}
        values |= {"target": f"target {i % 5}", "source": "winter", "size": "40x30"}
        values |= {"preview": f"originals/{name}.png"}
        files[f"originals/{name}.png"] = picture(100)
        if i in (7, 31):
            values |= {"status": "failed", "reason": f"reason {i}"}
        else:
            values |= {"output": f"edits/{name}.png", "mask": f"masks/{name}.png"}
            values |= {"mask_share": i / 60, "seconds": 60.0 - i}
            values |= {"figures": {"psnr": float("nan") if i == 3 else (i * 7) % 60}}
            files |= {f"edits/{name}.png": picture(130), f"masks/{name}.png": picture(255)}
        rows.append(values)
    rows[5] |= {"id": HOSTILE, "target": HOSTILE, "answer": rows[5]["output"]}
    return write(folder, files | render_report(rows, title="A job", facts={"model": "tiny"}))


@pytest.fixture
def gallery(browser: Any, page: Path) -> Iterator[Gallery]:
    gallery = Gallery(browser, page)
    yield gallery
    assert gallery.complaints() == []


def test_twenty_thousand_rows_open_at_once(browser: Any, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{i:06d}", "status": "failed" if i % 1000 == 999 else "ok",
            "reason": "out of memory" if i % 1000 == 999 else None, "image": f"album/{i}.jpg",
            "target": f"a photo of a bronze horse number {i} in the museum, in winter",
            "source": f"a photo of a horse number {i}", "output": f"edits/{i}.png",
            "preview": f"originals/{i}.jpg", "mask": f"masks/{i}.png", "size": "512x512",
            "mask_share": (i * 37 % 1000) / 1000, "seconds": 1 + (i * 17 % 100) / 100,
            "figures": {"psnr": 20 + (i * 13 % 2000) / 100, "confidence": (i * 7 % 100) / 100},
        }
        for i in range(20_000)
    ]  # fmt: skip
    gallery = Gallery(browser, write(tmp_path, render_report(rows, title="Large", facts={})))
    shown = gallery.run("return performance.getEntriesByName('first page')[0].startTime")
    assert shown < 3000, f"first page after {shown:.0f} ms"
    assert gallery.run("return document.querySelectorAll('#cards .card').length") == 24
    assert gallery.summary() == "1–24 of 20,000 rows"
    took = gallery.run(
        """searchTexts();
        const start = performance.now();
        const found = findRows({q: '"number 123" wint', show: "all", sort: "figure psnr"});
        return [found.length, performance.now() - start];"""
    )
    expected = sum("number 123" in of["target"] for of in rows)
    assert took[0] == expected > 100 and took[1] < 500


def test_failures_are_on_top_unless_told_otherwise(gallery: Gallery) -> None:
    assert gallery.ids()[:4] == ["id 7", "id 31", "id 0", "id 1"]
    assert gallery.texts("#cards .reason:not([hidden])") == ["reason 7", "reason 31"]
    gallery.find("#top").click()
    assert gallery.ids()[:4] == ["id 0", "id 1", "id 2", "id 3"]
    gallery.find("[data-value=failed]").click()
    assert gallery.ids() == ["id 7", "id 31"]
    gallery.find("[data-value=ok]").click()
    assert gallery.summary() == "1–24 of 58 rows found (60 in all)"


def test_the_review_list_is_on_top_and_the_least_confident_first(
    browser: Any, tmp_path: Path
) -> None:
    rows = [
        {
            "id": f"id {i}", "status": "failed" if i == 4 else "ok", "output": "edit.png",
            "preview": "edit.png", "error": "error.png" if i == 2 else None,
            "confidence": None if i == 4 else (7 * i % 10) / 10, "reason": "no memory" if i == 4 else None,
            "review": "the mask changes" if i in (2, 3) else None,
        }
        for i in range(8)
    ]  # fmt: skip
    pictures = {"edit.png": picture(90), "error.png": picture(20)}
    files = pictures | render_report(rows, title="Sure?", facts={})
    gallery = Gallery(browser, write(tmp_path, files))
    assert gallery.ids() == [f"id {i}" for i in (4, 3, 2, 0, 6, 5, 1, 7)]
    assert gallery.texts("#cards .reason:not([hidden])") == ["no memory"] + ["the mask changes"] * 2
    gallery.find("[data-value=review]").click()
    assert gallery.ids() == ["id 3", "id 2"]
    assert "confidence10 %" in gallery.texts("#cards dl div")
    gallery.find("[data-value=error]").click()
    gallery.wait_for_pictures("#cards")
    assert gallery.pictures("#cards") == ["mask"]
    gallery.find("[data-value=all]").click()
    gallery.choose("#sort", "order")
    gallery.find("#top").click()
    assert gallery.ids() == [f"id {i}" for i in range(8)]
    assert gallery.complaints() == []


def test_all_pictures_of_a_page_are_found(gallery: Gallery) -> None:
    # Lazily loaded, so only once they are near.
    gallery.run("for (const i of document.querySelectorAll('#cards img')) i.loading = 'eager'")
    gallery.wait_for_pictures("#cards")
    gallery.find("[data-value=overlay]").click()
    gallery.wait_for_pictures("#cards")
    shown = [picture for picture in gallery.pictures("#cards") if picture == "mask"]
    assert len(shown) == 22


def test_text_is_never_markup(gallery: Gallery) -> None:
    shown = HOSTILE.replace("\x00", "\\x00")
    assert shown in gallery.texts("#cards .target") and shown in gallery.ids()
    assert gallery.browser.title == "A job"


def test_search_narrows_in_all_texts(gallery: Gallery) -> None:
    gallery.search('win "TARGET 3"')
    assert gallery.ids() == [f"id {i}" for i in range(60) if i % 5 == 3]
    gallery.search("49 4 win target")
    assert gallery.ids() == ["id 49"]
    gallery.search("reason 31")
    assert gallery.ids() == ["id 31"]
    gallery.search(unicodedata.normalize("NFD", "é"))  # as a Mac's file names have it
    assert "60 rows" in gallery.summary()
    gallery.search("zebra")
    assert gallery.ids() == [] and gallery.texts("#empty p") == ["No row matches."]
    gallery.find("#empty button").click()
    assert gallery.summary() == "1–24 of 60 rows"


def test_rows_are_sorted_both_ways_with_the_unknown_last(gallery: Gallery) -> None:
    gallery.find("#top").click()
    gallery.choose("#per", "96")
    known = sorted((i for i in range(60) if i not in (3, 7, 31)), key=lambda i: i * 7 % 60)
    gallery.choose("#sort", "figure psnr")
    name = {5: HOSTILE.replace("\x00", "\\x00")}
    rows = [[*known, 3, 7, 31], [*known[::-1], 3, 7, 31]]
    expected = [[name.get(i, f"id {i}") for i in of] for of in rows]
    assert gallery.ids() == expected[0]
    gallery.find("#down").click()
    assert gallery.ids() == expected[1]
    assert gallery.texts("#cards li:nth-child(58) dl div:nth-child(2)") == ["psnr–"]
    gallery.choose("#sort", "id")
    assert gallery.ids()[:3] == ["id 59", "id 58", "id 57"]  # as people count


def test_pages_turn_and_the_address_keeps_the_place(gallery: Gallery, page: Path) -> None:
    gallery.find(".pager [data-to=last]").click()
    assert gallery.summary() == "49–60 of 60 rows"
    gallery.choose(".pager input", "2")
    assert gallery.summary() == "25–48 of 60 rows"
    gallery.choose("#sort", "seconds")
    assert gallery.summary() == "1–24 of 60 rows"
    gallery.find(".pager [data-to=next]").click()
    before, address = gallery.ids(), gallery.run("return location.hash")
    gallery.open(address)
    assert gallery.ids() == before
    gallery.open()
    gallery.find(".pager [data-to=next]").click()
    gallery.browser.back()
    gallery.wait(lambda: gallery.summary() == "1–24 of 60 rows")


def test_a_nonsensical_address_shows_the_first_page(gallery: Gallery) -> None:
    gallery.open("#page=99&per=7&sort=constructor&view=toString&gain=x&show=no&open=none")
    assert gallery.summary() == "49–60 of 60 rows"
    gallery.open("#page=-3&q=%E0%A4%A")
    assert "0 rows found" in gallery.summary()


def test_the_slider_uncovers_the_original(gallery: Gallery) -> None:
    def cut() -> float:
        return float(gallery.run(f"return document.querySelector('{THIRD} .cut').value"))

    def levels() -> list[int]:
        return [gallery.level(at) for at in (0.2, 0.35, 0.65, 0.8)]

    assert cut() == 50 and levels() == [100, 100, 130, 130]
    gallery.drag(f"{THIRD} .frame", 60)
    assert 66 < cut() < 79 and levels() == [100, 100, 100, 130]
    assert not gallery.is_large()  # a drag is no click
    gallery.run(f"document.querySelector('{THIRD} .cut').focus()")
    before = cut()
    gallery.press(LEFT, LEFT)
    assert cut() == before - 2
    gallery.press(*[LEFT] * 45)
    assert levels() == [100, 130, 130, 130]


def test_views_show_masks_and_differences(gallery: Gallery) -> None:
    assert gallery.pictures(THIRD) == ["first", "edit"]
    gallery.find("[data-value=mask]").click()
    assert gallery.pictures(THIRD) == ["mask"] and gallery.level(0.5) == 255
    gallery.find("[data-value=overlay]").click()
    assert gallery.pictures(THIRD) == ["edit", "mask"] and 130 < gallery.level(0.5) < 255
    gallery.find("[data-value=difference]").click()
    assert gallery.pictures(THIRD) == ["first", "edit"]
    for gain, level in (("1", 30), ("4", 120)):  # of 100 and 130
        gallery.choose("#gain", gain)
        assert abs(gallery.level(0.5) - level) <= 1
    gallery.find("[data-value=answer]").click()
    assert gallery.texts(f"{THIRD} .missing") == ["This row has no exact answer."]


def test_a_click_opens_a_row_large_and_keys_walk_through_all(gallery: Gallery) -> None:
    gallery.find(f"{THIRD} .stage").click()
    assert gallery.texts("#place") == ["3 of 60"] and gallery.texts("#large h2") == ["target 0"]
    assert "open=id+0" in gallery.run("return location.hash")
    gallery.press(*[LEFT] * 3)
    assert gallery.texts("#place") == ["1 of 60"]
    assert gallery.texts("#large .reason") == ["reason 7"]
    gallery.press(*[RIGHT] * 26)
    assert gallery.texts("#place") == ["27 of 60"]
    gallery.press(ESCAPE)
    gallery.wait(lambda: not gallery.is_large())
    # The page behind has followed, and the focus is where the visitor was.
    assert gallery.summary() == "25–48 of 60 rows"
    assert "open" not in gallery.run("return location.hash")
    focused = (
        "return document.activeElement.closest('.card') === document.querySelector(arguments[0])"
    )
    assert gallery.run(focused, THIRD)


@pytest.mark.parametrize("suffix", [kind.suffix for kind in WRITTEN.values()])
@pytest.mark.parametrize("profile", ["", "wide", "grey"])
def test_results_of_every_format_are_shown_in_their_originals_colours(
    browser: Any, tmp_path: Path, suffix: str, profile: str
) -> None:
    pixels = np.full((40, 60, 3), 0.2, np.float32)
    if profile != "grey":
        pixels[..., 1:] = -0.6
    like = Picture(pixels, grey=profile == "grey", icc_profile=profile_of(profile))
    output, shown = f"images/a{suffix}", "shown/a.jpg"
    with quietly():
        files = {output: encode_image(output, pixels, like)}
        copied = needs_shown_copy(output, like)
    without = {"": (), "wide": (".bmp",), "grey": (".bmp", ".webp", ".avif")}[profile]
    assert copied == (suffix in (".tiff", ".jp2", ".tga", ".ppm", *without))
    if copied:
        files[shown] = encode_preview(pixels, like)
    files["originals/a.jpg"] = encode_preview(pixels, like)
    row = {
        "id": "a", "status": "ok", "output": output, "shown": shown if copied else None,
        "preview": "originals/a.jpg", "size": "60x40",
    }  # fmt: skip
    gallery = Gallery(browser, write(tmp_path, files | render_report([row], title="t", facts={})))
    gallery.wait_for_pictures("#cards")
    left, right = (gallery.colour("#cards li", at) for at in (0.25, 0.75))
    np.testing.assert_allclose(left, right, atol=2)
    plain = 255 * (pixels[0, 0] + 1) / 2
    assert (np.abs(left - plain).max() > 8) == (profile != "")  # the profile counts
    gallery.find("#cards .target").click()
    gallery.wait_for_pictures("#picture")
    links = gallery.run("return [...document.querySelectorAll('.files a')].map((a) => a.href)")
    assert links[1].endswith(f"/images/a{suffix}")
    assert gallery.complaints() == []


def test_missing_pictures_and_data_are_told(browser: Any, tmp_path: Path) -> None:
    files = render_report(
        [{"id": "a", "status": "ok", "output": "no.png", "preview": "no.png"}], title="t", facts={}
    )
    page = write(tmp_path, files)
    gallery = Gallery(browser, page)
    gallery.wait(lambda: "cannot be read" in gallery.texts("#cards .missing")[0])
    (tmp_path / "gallery/rows-0.js").unlink()
    gallery.open()
    assert "Only 0 of 1 rows could be read" in gallery.texts("#alert")[0]
    gallery.complaints()


def test_a_job_without_rows_says_so(browser: Any, tmp_path: Path) -> None:
    gallery = Gallery(browser, write(tmp_path, render_report([], title="t", facts={})))
    assert gallery.texts("#empty p") == ["The job has no rows yet."]
    assert gallery.summary() == "0 rows" and gallery.complaints() == []


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_nothing_is_wider_than_the_screen(gallery: Gallery, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    gallery.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert gallery.run("return document.documentElement.scrollWidth") <= width
        gallery.find("#cards .target").click()
        assert gallery.run("return document.querySelector('dialog').scrollWidth") <= width
    finally:
        gallery.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
