"""Paths and URLs as text."""

import ntpath
from pathlib import Path
from types import SimpleNamespace

import pytest

from uam_jax import files
from uam_jax.files import base_name, is_url, join, local_path, parent, public

SIGNED = "https://b.s3.amazonaws.com/d/m.parquet?X-Amz-Credential=AKIA/2026/s3&X-Amz-Signature=9f"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("gs://b/x.png", True),
        ("simplecache::s3://b/x", True),
        ("zip://m.jsonl::https://h/x.zip", True),
        ("a::b.png", False),
        ("C:\\a\\b.jpg", False),
        ("C://a/b.jpg", False),
        ("what is it? a://b.png", False),
    ],
)
def test_urls_are_distinguished_from_paths(name: str, url: bool) -> None:
    assert is_url(name) == url


def test_a_local_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a%20b.png").touch()
    assert local_path("file:///a/b%20c.png") == "/a/b c.png"
    assert local_path(f"file://localhost{tmp_path}/a%20b.png") == f"{tmp_path}/a%20b.png"
    assert local_path("a::b#?.png") == "a::b#?.png"
    assert local_path("gs://b/x") is None and local_path("simplecache::file:///x") is None


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("d/m.jsonl", "d", "m.jsonl"),
        ("m.jsonl", "", "m.jsonl"),
        ("memory://d/m.jsonl", "memory://d", "m.jsonl"),
        ("memory://m.jsonl", "memory://", "m.jsonl"),
        (SIGNED, "https://b.s3.amazonaws.com/d", "m.parquet"),
        ("s3://b/d/what?.jsonl", "s3://b/d", "what?.jsonl"),
        ("zip://d/m.jsonl::https://h/x.zip", "zip://d::https://h/x.zip", "m.jsonl"),
    ],
)
def test_a_name_is_taken_apart(url: str, folder: str, name: str) -> None:
    assert (parent(url), base_name(url)) == (folder, name)


def test_join() -> None:
    assert join("a/b/", "c.png") == "a/b/c.png" and join("", "c.png") == "c.png"
    assert join("a", "/c.png") == "/c.png" and join("gs://b", "s3://c/d") == "s3://c/d"
    assert join("memory://", "x.png") == "memory://x.png" and join("gs://b", "x") == "gs://b/x"
    assert join("zip://d::s3://b/x.zip", "x.png") == "zip://d/x.png::s3://b/x.zip"


def test_drives_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "os", SimpleNamespace(path=ntpath, sep="\\"))
    assert join("C:\\d", "C:\\a\\b.jpg") == "C:\\a\\b.jpg" and join("C:/d", "s\\b") == "C:/d/s\\b"
    assert local_path("file:///C:/d/m%20n.jsonl") == "C:/d/m n.jsonl"
    assert parent("C:\\d\\m.jsonl") == "C:\\d" and base_name("C:\\d\\m.jsonl") == "m.jsonl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{SIGNED}: can't be read (403)", "https://b.s3.amazonaws.com/d/m.parquet: can't be read (403)"),
        ("(https://h/a.png?sv=1&sig=x%3D)", "(https://h/a.png)"),
        ("https://h/a.png?X-Goog-Signature=1&x=2", "https://h/a.png"),
        ("https://h/a.png?Expires=1&Key-Pair-Id=K&Policy=p", "https://h/a.png"),
        ("https://h/a.png?hdnts=exp=1~hmac=2", "https://h/a.png"),
        ("https://h/get?id=3&design=4", "https://h/get?id=3&design=4"),
        ("sftp://me:pw@host/a.png and ftp://x", "sftp://host/a.png and ftp://x"),
        ("https://token@host/a@2x.png", "https://host/a@2x.png"),
        ("abfs://container@account/a.png", "abfs://container@account/a.png"),
        ("simplecache::https://me:p@w@h/a", "simplecache::https://h/a"),
        ("me:pw@host and /a?sig=1", "me:pw@host and /a?sig=1"),
        ("zip://a.png::https://me:pw@h/x.zip?sig=1", "zip://a.png::https://h/x.zip"),
        ("https://h/my new photo.png?sv=1&sig=2", "https://h/my new photo.png"),
        ("'https://h/bob's.png?sig=2' is it?", "'https://h/bob's.png' is it?"),
        ("https://h/a.png?md5=1&expires=2", "https://h/a.png"),
        ("https://h/a.png?ex=1&is=2&hm=3 and https://h/b?x=1", "https://h/a.png and https://h/b?x=1"),
    ],
)  # fmt: skip
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert public(text) == shown


def test_a_long_text_is_no_trap() -> None:
    texts = ["x" * 10**6, "a." * 10**6, "https://h/?" + "a" * 10**6]
    texts += ["https://h/a b' c " * 10**5, "https://h/" + "a b" * 10**5]
    for text in texts:  # in squared time, hours
        assert public(text) == text
