"""The tokenizer: the ids of prompts, and the files that a checkpoint has for it."""

import json
import re
import string
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from uam_jax.checkpoints.tokenizer import Tokenizer, unknown_words
from uam_jax.errors import InputError
from uam_jax.scenes.bpe import train_tokenizer

CAPTIONS = ["a red cube on a table", "a blue ball on a table, lit from the left"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, train_tokenizer(CAPTIONS, folder, vocab_size=600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer(CAPTIONS, tmp_path, vocab_size=600)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[Path, Tokenizer]) -> Tokenizer:
    return trained[1]


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_training_is_deterministic(trained: tuple[Path, Tokenizer], folder: Path) -> None:
    for file in sorted(trained[0].iterdir()):
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_ids_are_in_the_order_of_clip(trained: tuple[Path, Tokenizer]) -> None:
    folder, tokenizer = trained
    ids = json.loads((folder / "vocab.json").read_text())
    assert ids["!"] == 0 and ids["!</w>"] == 256 and ids["a</w>"] == 256 + ids["a"]
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    assert [ids[merge.replace(" ", "")] for merge in merges] == list(range(512, 512 + len(merges)))
    assert tokenizer.start_id == len(ids) - 2
    assert tokenizer.end_id == tokenizer.pad_id == len(ids) - 1
    assert tokenizer.vocab_size == len(ids) <= 600


def test_every_word_of_the_captions_is_one_token(tokenizer: Tokenizer) -> None:
    words = set(re.findall(r"\w+|,", " ".join(CAPTIONS)))
    ids = tokenizer.encode(sorted(words))
    assert (ids[:, 2] == tokenizer.end_id).all()
    assert len(set(ids[:, 1])) == len(words)


def test_training_respects_the_size(tmp_path: Path) -> None:
    assert train_tokenizer(CAPTIONS, tmp_path, vocab_size=520).vocab_size == 520
    with pytest.raises(ValueError, match="514"):
        train_tokenizer(CAPTIONS, tmp_path, vocab_size=514)


def test_the_empty_prompt_is_start_end_and_padding(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode([""])
    assert ids.dtype == np.int32 and ids.shape == (77,)
    assert ids[0] == tokenizer.start_id and (ids[1:] == tokenizer.end_id).all()
    np.testing.assert_array_equal(tokenizer.encode([" \t\n\u3000"])[0], ids)
    assert tokenizer.encode([]).shape == (0, 77)


def test_case_and_blanks_do_not_matter(tokenizer: Tokenizer) -> None:
    same = ["a red cube", "  A\tRed\n\nCUBE ", "a red\u00a0cube"]
    assert len({ids.tobytes() for ids in tokenizer.encode(same)}) == 1
    assert len({ids.tobytes() for ids in tokenizer.encode(["caf\u00e9", "cafe\u0301"])}) == 1


@hypothesis.given(st.text(max_size=60))
def test_any_text_has_ids(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text[:18]])  # at most 4 bytes each: 72 tokens
    assert ids[0] == tokenizer.start_id
    assert tokenizer.end_id in ids
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size


@hypothesis.given(st.text(string.ascii_lowercase + " ", max_size=70))
def test_ids_lose_nothing(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    tokens = (tokenizer.backend.id_to_token(int(i)) for i in ids[1:] if i != tokenizer.end_id)
    assert "".join(tokens).replace("</w>", " ").split() == text.split()


def test_a_prompt_that_just_fits_is_silent(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([" ".join(["red"] * 75)])
    assert ids[0, -1] == tokenizer.end_id and (ids[0, 1:-1] == ids[0, 1]).all()


def test_a_prompt_that_is_too_long_is_cut_and_the_lost_words_are_named(
    tokenizer: Tokenizer,
) -> None:
    words = ["red"] * 75
    with pytest.warns(
        UserWarning, match=r'76 tokens, of which 75 fit.*no effect: "Cube"'
    ) as caught:
        (ids,) = tokenizer.encode([" ".join([*words, "Cube"])])
    assert len(caught) == 1
    np.testing.assert_array_equal(ids, tokenizer.encode([" ".join(words)])[0])


def test_of_a_word_that_is_cut_in_two_the_lost_part_is_quoted(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match='no effect: "zx, cube"'):
        tokenizer.encode([" ".join(["red"] * 73 + ["zxzx, cube"])])
    with pytest.warns(UserWarning, match='no effect: "zz"'):
        tokenizer.encode(["z" * 77])


def test_of_text_without_blanks_only_what_is_lost_is_quoted(tokenizer: Tokenizer) -> None:
    text = "東京タワーの前の赤い車と青い家、白い猫、大きな木の下に" * 9
    with pytest.warns(UserWarning, match="no effect") as caught:
        tokenizer.encode([text])
    # Three bytes, and so three tokens, to a character: 25 of them fit.
    assert text.startswith("東京") and len(tokenizer.backend.encode(text).ids) == 3 * len(text)
    assert f'"{text[25:]}"' in str(caught[0].message)
    with pytest.warns(UserWarning, match="no effect") as caught:
        tokenizer.encode([text * 100])
    assert f'"{(text * 9)[25:325]} ..."' in str(caught[0].message)


def test_the_list_of_lost_words_is_kept_short(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match=r"red \.\.\.") as caught:
        tokenizer.encode(["red " * 5000, "a cube"])
    assert len(caught) == 1 and len(str(caught[0].message)) < 500


@pytest.mark.parametrize("text", ["a \ud800 cube", "\udcff"])
def test_text_that_is_not_unicode_is_named(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text))):
        tokenizer.encode([text])


def test_a_bare_string_is_not_taken_for_letters(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="in a list"):
        tokenizer.encode("a cube")


def test_unknown_words_are_listed_once_and_in_order() -> None:
    known = {"a", "red", "cube"}
    texts = ["a red cube.", "A Zebra, (a red) unicorn's horn", "zebra 🎉 7", ""]
    assert unknown_words(texts, known) == ["zebra", "unicorn", "s", "horn", "🎉", "7"]


# ---- the files of a checkpoint ----


def test_sd2_pads_with_zero(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", pad_token={"content": "!", "lstrip": False})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.pad_id == 0
    (ids,) = tokenizer.encode(["a cube!"])
    assert list(ids[3:6]) == [0, tokenizer.end_id, 0]


def test_added_tokens_make_the_newer_file_win(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="!")
    assert Tokenizer.from_folder(folder).pad_id != 0
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"0": {"content": "!"}})
    assert Tokenizer.from_folder(folder).pad_id == 0


@pytest.mark.parametrize(("said", "length"), [(32, 32), (1e30, 77), (None, 77)])
def test_length_is_the_files(folder: Path, said: float | None, length: int) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=said)
    assert Tokenizer.from_folder(folder).encode(["a cube"]).shape == (1, length)


def test_vocabulary_and_merges_are_enough(folder: Path, tokenizer: Tokenizer) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    bare = Tokenizer.from_folder(folder)
    np.testing.assert_array_equal(bare.encode(CAPTIONS), tokenizer.encode(CAPTIONS))


def test_windows_line_ends_are_read(folder: Path, tokenizer: Tokenizer) -> None:
    merges = folder / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    found = Tokenizer.from_folder(folder).encode(CAPTIONS)
    np.testing.assert_array_equal(found, tokenizer.encode(CAPTIONS))


@pytest.mark.parametrize("merge", [str, str.split], ids=["text", "pairs"])
def test_a_single_tokenizer_file_is_read(folder: Path, tokenizer: Tokenizer, merge) -> None:
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    model = {
        "type": "BPE",
        "end_of_word_suffix": "</w>",
        "vocab": json.loads((folder / "vocab.json").read_text()),
        "merges": [merge(line) for line in lines],
    }
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "vocab.json").unlink()
    found = Tokenizer.from_folder(folder).encode(CAPTIONS)
    np.testing.assert_array_equal(found, tokenizer.encode(CAPTIONS))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", "{", r"vocab\.json: not JSON"),
        ("vocab.json", "[]", r"vocab\.json: not a JSON object"),
        ("vocab.json", '{"a": "b"}', "not a vocabulary"),
        ("vocab.json", '{"a": true}', "not a vocabulary"),
        ("vocab.json", '{"a": -1, "<|endoftext|>": 1, "<|startoftext|>": 2}', "do not fit"),
        ("vocab.json", '{"a": 1}', r"bos_token '<\|startoftext\|>' is not in the vocabulary"),
        ("merges.txt", "a b c\n", "a merge is not a pair"),
        ("merges.txt", "nobody knows\n", "merges and vocabulary do not fit"),
        ("merges.txt", "\xff", r"merges\.txt: can't be read"),
        ("tokenizer_config.json", "nonsense", r"tokenizer_config\.json: not JSON"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "model_max_length is 1"),
        ("tokenizer_config.json", '{"model_max_length": 9.5}', r"model_max_length is 9\.5"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "model_max_length is nan"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "pad_token '<pad>' is not in"),
        ("special_tokens_map.json", '{"pad_token": 3}', "pad_token 3 is not in"),
        ("special_tokens_map.json", '{"pad_token": [3]}', r"pad_token \[3\] is not in"),
    ],
)
def test_a_garbled_file_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("model", [None, {}, {"type": "Unigram"}, {"end_of_word_suffix": "</w>"}])
def test_another_kind_of_tokenizer_is_refused(tmp_path: Path, model: dict | None) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(InputError, match="not a"):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}: there is no tokenizer here"):
        Tokenizer.from_folder(tmp_path)


# ---- tokens that a checkpoint added ----


def added_in(place: str, folder: Path, **flags: object) -> int:
    """Adds the token `<my-cat>` in one of the places that tokenizers have for it, and returns its id."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    entry = {"content": "<my-cat>", **flags}
    number = len(vocabulary)
    match place:
        case "added_tokens.json":
            (folder / place).write_text(json.dumps({"<my-cat>": number}))
        case "added_tokens_decoder":
            edit(folder / "tokenizer_config.json", added_tokens_decoder={str(number): entry})
        case "tokenizer.json":
            (folder / place).write_text(json.dumps({"added_tokens": [entry | {"id": number}]}))
        case "tokenizer.json alone":
            merges = (folder / "merges.txt").read_text().splitlines()[1:]
            model = {"end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges}
            content = {"added_tokens": [entry | {"id": number}], "model": model}
            (folder / "tokenizer.json").write_text(json.dumps(content))
            (folder / "merges.txt").unlink()
        case "table of extra_special_tokens":
            edit(folder / "tokenizer_config.json", extra_special_tokens={"cat_token": "<my-cat>"})
        case list_of:
            file, key = list_of.split()
            edit(folder / file, **{key: ["<my-cat>"]})
    return number


PLACES = (
    "added_tokens.json",
    "added_tokens_decoder",
    "tokenizer.json",
    "tokenizer.json alone",
    "special_tokens_map.json additional_special_tokens",
    "tokenizer_config.json additional_special_tokens",
    "special_tokens_map.json extra_special_tokens",
    "tokenizer_config.json extra_special_tokens",
    "table of extra_special_tokens",
)


@pytest.mark.parametrize("place", PLACES)
def test_an_added_token_is_one_id_wherever_it_is_kept(folder: Path, place: str) -> None:
    plain = Tokenizer.from_folder(folder)
    number = added_in(place, folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert number == plain.vocab_size == tokenizer.vocab_size - 1
    (ids,) = tokenizer.encode(["a red <my-cat>, blue<my-cat>ball"])
    a, red, comma, blue, ball = plain.encode(["a red , blue ball"])[0, 1:6]
    assert list(ids[1:9]) == [a, red, number, comma, blue, number, ball, tokenizer.end_id]
    np.testing.assert_array_equal(tokenizer.encode(CAPTIONS), plain.encode(CAPTIONS))


def test_every_token_is_reached(tokenizer: Tokenizer) -> None:
    assert tokenizer.reached == set(tokenizer.vocabulary.values())
    assert tokenizer.reached == set(range(tokenizer.vocab_size))


def test_the_flags_of_an_added_token_count(folder: Path) -> None:
    def count(text: str, **flags: object) -> int:
        number = added_in("added_tokens_decoder", folder, **flags)
        return list(Tokenizer.from_folder(folder).encode([text])[0]).count(number)

    assert count("a <MY-CAT>", normalized=True) == 1
    assert count("a <MY-CAT>", normalized=False) == 0
    assert count("x<my-cat>", single_word=False) == 1
    assert count("x<my-cat>", single_word=True) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<my-cat>": 3}, "id 3 is '<my-cat>' here and '\\$' elsewhere"),
        ("added_tokens.json", {"a</w>": 999}, "'a</w>' is id 999 here and 320 elsewhere"),
        ("added_tokens.json", {"<my-cat>": "x"}, "the id of '<my-cat>' is 'x'"),
        ("added_tokens.json", {"<my-cat>": True}, "the id of '<my-cat>' is True"),
        ("added_tokens.json", {"<my-cat>": -1}, "the id of '<my-cat>' is -1"),
        ("added_tokens.json", {"": 999}, "the added token '' is not text"),
        ("added_tokens.json", {"\ud800": 999}, "not valid Unicode"),
        ("added_tokens.json", {"<a>": 999, "<b>": 999}, "id 999 is '<b>' here and '<a>' elsewhere"),
        ("tokenizer.json", {"added_tokens": {}, "model": {}}, None),
        ("tokenizer.json", {"added_tokens": {"<my-cat>": 9}}, "added_tokens is not a list"),
        ("tokenizer.json", {"added_tokens": [{"content": "<my-cat>"}]}, "id of '<my-cat>' is None"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "not a table from id to token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"999": 3}},
            "added token 3 is not text",
        ),
        ("special_tokens_map.json", {"additional_special_tokens": "<x>"}, "'<x>', not a list"),
        ("special_tokens_map.json", {"additional_special_tokens": [[]]}, r"token \[\] is not text"),
    ],
)
def test_an_added_token_at_fault_is_named(
    folder: Path, name: str, content: dict, message: str | None
) -> None:
    (folder / name).write_text(json.dumps(content))
    if message is None:
        assert Tokenizer.from_folder(folder)
        return
    with pytest.raises(InputError, match=message):
        Tokenizer.from_folder(folder)


def test_padding_may_be_an_added_token(folder: Path) -> None:
    number = added_in("added_tokens.json", folder)
    edit(folder / "special_tokens_map.json", pad_token="<my-cat>")
    assert Tokenizer.from_folder(folder).pad_id == number


@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_byte_order_mark_is_no_part_of_the_text(
    folder: Path, tokenizer: Tokenizer, name: str
) -> None:
    content = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(content, encoding="utf-8-sig")
    found = Tokenizer.from_folder(folder).encode(CAPTIONS)
    np.testing.assert_array_equal(found, tokenizer.encode(CAPTIONS))
    (folder / name).write_text(content, encoding="utf-16")
    with pytest.raises(InputError, match=f"{name}: the text is UTF-16"):
        Tokenizer.from_folder(folder)
