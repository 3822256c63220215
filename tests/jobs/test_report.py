"""The gallery's files: what is escaped, how the data are laid out, and where addresses may lead."""

import json
import math
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin

import hypothesis.strategies as st
import pytest
from hypothesis import given

from uam_jax.errors import InputError
from uam_jax.jobs import report
from uam_jax.jobs.report import render_report

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028'\"`&amp;\x00é雪\ud800"


def row(number: int = 0, **values: Any) -> dict[str, Any]:
    return {"id": f"row {number}", "status": "ok"} | values


def parts_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The data scripts' arguments, in order."""
    names = [name for name in files if name.startswith("gallery/rows-")]
    scripts = [files[name].decode("ascii") for name in names]
    assert all(script.startswith("addRows(") and script.endswith(");\n") for script in scripts)
    return [json.loads(script[len("addRows(") : -len(");\n")]) for script in scripts]


def column_of(part: dict[str, Any], name: str) -> list[Any]:
    column = part["columns"][name]
    return column if isinstance(column, list) else [column["words"][at] for at in column["at"]]


def render_rows(*rows: dict[str, Any]) -> dict[str, Any]:
    (part,) = parts_of(render_report(rows, title="A job", facts={}))
    return part


class Page(HTMLParser):
    """The tags and the text of a page as a browser sees them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_names_its_files_in_the_order_in_which_they_depend_on_each_other() -> None:
    files = render_report([row()], title="A job", facts={})
    page = Page(files["index.html"])
    scripts = [str(of["src"]).partition("?")[0] for tag, of in page.tags if tag == "script"]
    assert scripts == [
        "gallery/data.js",
        "gallery/rows-0.js",
        "gallery/stage.js",
        "gallery/page.js",
    ]
    (style,) = [of["href"] for tag, of in page.tags if of.get("rel") == "stylesheet"]
    assert {"index.html", *scripts, str(style).partition("?")[0]} == set(files)
    assert all("defer" in of for tag, of in page.tags if tag == "script")


def test_the_page_asks_nothing_of_a_network() -> None:
    files = render_report([row()], title="A job", facts={"a": 1})
    text = b"".join(files.values()).decode()
    assert "http:" not in text and "https:" not in text and "fetch(" not in text
    # Text becomes part of the page as text only.
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text


def test_an_address_changes_with_the_content() -> None:
    def address(identity: str) -> str:
        page = render_report([row(id=identity)], title="A job", facts={})["index.html"].decode()
        return page.partition("rows-0.js?")[2].partition('"')[0]

    assert address("a") == address("a") != address("b")


def test_titles_and_facts_are_text() -> None:
    files = render_report([], title=HOSTILE, facts={HOSTILE: HOSTILE, "nothing": None})
    page = Page(files["index.html"])
    benign = Page(render_report([], title="t", facts={"a": 1, "b": 2})["index.html"])
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in benign.tags]
    shown = "</script><img src=x onerror=alert(1)>\u2028'\"`&amp;\\x00é雪\\ud800"
    assert page.text.count(shown) == 4  # the window's title, the heading, a name, a value
    assert b"\x00" not in files["index.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (57, "57"),
        (20_000, "20,000"),
        (1.83419, "1.834"),
        (math.nan, "–"),
        (None, "–"),
        (True, "True"),
        (["a", 2], "a, 2"),
        ({"images_per_second": 2.0}, "images per second 2"),
    ],
)
def test_facts_are_written_for_people(value: object, text: str) -> None:
    page = Page(render_report([], title="t", facts={"some_fact": value})["index.html"])
    assert "some fact" in page.text and "some_fact" not in page.text
    assert f"some fact{text}" in page.text


def test_texts_arrive_unchanged_and_the_script_is_plain_ascii() -> None:
    files = render_report([row(target=HOSTILE, reason=HOSTILE)], title="A job", facts={})
    script = files["gallery/rows-0.js"]
    assert max(script) < 128 and min(script[:-1]) >= 32 and b"<" not in script
    (part,) = parts_of(files)
    shown = HOSTILE.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
    assert column_of(part, "target") == column_of(part, "reason") == [shown]


def test_line_breaks_stay() -> None:
    assert column_of(render_rows(row(target="one\n\ttwo\r")), "target") == ["one\n\ttwo\\r"]


def test_a_column_of_few_words_says_each_once() -> None:
    rows = [row(i, size="640x480", target=f"target {i % 2}") for i in range(10)]
    part = render_rows(*rows)
    assert part["columns"]["size"] == {"words": ["640x480"], "at": [0] * 10}
    assert column_of(part, "target") == [of["target"] for of in rows]
    assert part["columns"]["id"] == [of["id"] for of in rows]


def test_missing_keys_are_empty_and_unknown_keys_are_left_out() -> None:
    part = render_rows(row(seed=3, figures=None), row(1, status="failed", reason=None))
    texts = ("reason", "review", "image", "size", "output", "mask", "error", "answer")
    for name in (*texts, "confidence", "mask_share", "seconds"):
        assert column_of(part, name) == [None, None]
    assert column_of(part, "failed") == [0, 1]
    assert part["figures"] == [] and "seed" not in part["columns"]


def test_rows_are_split_into_files_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROWS_PER_FILE", 4)
    rows = [row(i, figures={"late": i} if i == 9 else {}) for i in range(10)]
    files = render_report(rows, title="A job", facts={})
    parts = parts_of(files)
    assert [part["count"] for part in parts] == [4, 4, 2]
    assert [name for part in parts for name in column_of(part, "id")] == [of["id"] for of in rows]
    # A figure has the same place in every part.
    assert [part["figures"][0] for part in parts] == [
        ["late", [None] * 4], ["late", [None] * 4], ["late", [None, 9]],
    ]  # fmt: skip
    sources = [of.get("src") for tag, of in Page(files["index.html"]).tags if tag == "script"]
    assert [str(name).partition("?")[0] for name in sources[1:-2]] == [
        f"gallery/rows-{i}.js" for i in range(3)
    ]


def test_figures_are_finite_numbers_or_nothing() -> None:
    figures = {
        "psnr": 31.123456789, "nan": math.nan, "inf": -math.inf, "huge": 10**400, "text": "?",
        "seed": 123456789012, "flag": True, "none": None, "__proto__": 2, "edge_error": 0.5,
    }  # fmt: skip
    part = render_rows(row(mask_share=math.inf, seconds=2.0, figures=figures))
    assert part["figures"] == [
        ["psnr", [31.12346]], ["nan", [None]], ["inf", [None]], ["huge", [None]], ["text", [None]],
        ["seed", [123456789012]], ["flag", [1]], ["none", [None]], ["  proto  ", [2]],
        ["edge error", [0.5]],
    ]  # fmt: skip
    assert column_of(part, "mask_share") == [None] and column_of(part, "seconds") == [2]


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("edits/a b.png", "edits/a%20b.png"),
        ("edits/#1 100%.png", "edits/%231%20100%25.png"),
        ('edits/a?b&c="d"\'.png', "edits/a%3Fb%26c%3D%22d%22%27.png"),
        ("é/雪.png", "%C3%A9/%E9%9B%AA.png"),
        ("a\\b.png", "a%5Cb.png"),
        ("not utf-8 \udcff.png", "not%20utf-8%20%FF.png"),
        ("half \ud83d.png", "half%20%3F.png"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("https://example.org/x.png", "https%3A/example.org/x.png"),
        ("//example.org/x.png", "example.org/x.png"),
        ("/etc/x.png", "etc/x.png"),
        ("../../x/./y.png", "x/y.png"),
        ("", None),
        ("..", None),
    ],
)
def test_paths_become_addresses_in_the_page_s_folder(path: str, address: str | None) -> None:
    part = render_rows(row(output=path, preview=path, mask=path, answer=path))
    for name in ("output", "preview", "mask", "answer"):
        assert column_of(part, name) == [address]


@given(st.text())
def test_no_path_leads_out_of_the_page_s_folder(path: str) -> None:
    (address,) = column_of(render_rows(row(output=path)), "output")
    if address is not None:
        assert urljoin("https://host/job/", address) == f"https://host/job/{address}"
        assert ".." not in unquote(address).split("/")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": None, "status": "ok"}, "row 2 .* no id"),
        ({"id": "", "status": "ok"}, "row 2 .* no id"),
        ({"id": "b"}, r"row 2 .*\(b\): status is None"),
        ({"id": "b", "status": "done"}, '\'done\', must be "ok" or "failed"'),
    ],
)
def test_a_row_without_id_or_status_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render_report([row(), values], title="A job", facts={})


def test_a_job_without_rows_has_a_page() -> None:
    files = render_report([], title="A job", facts={})
    assert parts_of(files) == [] and b'data-rows="0"' in files["index.html"]
