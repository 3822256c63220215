"""The gallery in a real browser, opened from the disk as a double click does."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery_page import ESCAPE, LEFT, RIGHT, THIRD, Gallery, picture, write

from uam_jax.jobs.report import render_report

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='document.title=\"hacked\"'></script>\u2028\x00"


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
    assert gallery.run("return document.querySelectorAll('#cards .card').length") == 24
    assert gallery.summary() == "1–24 of 20,000 rows"
    took = gallery.run(
        """searchTexts();
        const start = performance.now();
        const found = findRows({q: '"number 123" wint', show: "all", sort: "figure psnr"});
        return [found.length, performance.now() - start];"""
    )
    expected = sum("number 123" in of["target"] for of in rows)
    assert took[0] == expected > 100
    print(f"first page after {shown:.0f} ms, {took[0]} rows found in {took[1]:.0f} ms")


def test_failures_are_on_top_unless_chosen_otherwise(gallery: Gallery) -> None:
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


def test_missing_pictures_and_data_are_reported(browser: Any, tmp_path: Path) -> None:
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
