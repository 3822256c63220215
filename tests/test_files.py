"""Text files of every encoding, line end and fault."""

import re
from pathlib import Path

import pytest

from uam_jax.errors import InputError
from uam_jax.files import decode_text, read_json, read_text, read_toml

TEXT = 'name = "Zürich 東京"\nsteps = 3\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_do_not_matter(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(file) == TEXT
    assert read_toml(file) == {"name": "Zürich 東京", "steps": 3}
    file.write_bytes('{"a": "é"}'.encode(encoding))
    assert read_json(file) == {"a": "é"}


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("read", [read_text, read_json, read_toml])
def test_other_encodings_are_named_with_the_remedy(tmp_path: Path, encoding: str, read) -> None:
    file = tmp_path / "a.json"
    file.write_bytes('{"a": 1}'.encode(encoding))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: .*UTF-16.*save it as UTF-8"):
        read(file)


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff", b"\x80abc"])
def test_text_in_no_known_encoding_is_named(content: bytes) -> None:
    with pytest.raises(InputError, match="x: can't be read .*; save it as UTF-8"):
        decode_text(content, "x")


def test_short_text_is_no_fault() -> None:
    assert [decode_text(content, "x") for content in (b"", b"a", b"\xef\xbb\xbf")] == ["", "a", ""]


@pytest.mark.parametrize("path", ["absent", ".", "null\0character"])
def test_what_is_no_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_text(tmp_path / path)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 10**5, "3" * 5000])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{file}: not ")):
        read_json(file)


@pytest.mark.parametrize("text", ["a = = 1", "a = " + "[" * 10**5, "a = " + "3" * 5000])
def test_what_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{file}: not TOML")):
        read_toml(file)
