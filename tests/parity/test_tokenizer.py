"""Token ids against transformers' CLIP tokenizer, on vocabularies trained here."""

import json
import random
import string
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.scenes.bpe import train_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CORPUS = [
    "It's a photo of the cat's 3 kittens, they're sleeping; I'll say we've met & don't know who'd care!",
    "A naïve café façade in Zürich, Αθήνα, Москва and 東京: 12,345 euros (€) for 50% of it... or #1?",
    "https://example.org/path?query=1&x=y_z photorealistic 8k highly-detailed artstation trending 🎉",
]

STRINGS = [
    "",
    " ",
    "a",
    "!",
    "hello!! world!",
    "It's I'M WE'VE they'Ll 'tis ''s ' 's",
    "don’t “quote” «guillemets» …",
    "12345 1,000.50 3rd 1st ½ ² ٣ Ⅷ",
    "snake_case kebab-case CamelCase __init__ a.b.c",
    "tab\there\nnew\r\nline\x0bform\x0c\x85nel\u2028sep\u3000wide\u00a0nbsp\u200bzero",
    "cafe\u0301 café ﬁ ﬃ İstanbul ẞ ß ΣΑΣ ǅ",
    "東京タワー 서울 กรุงเทพ हिन्दी עברית العربية",
    "🎉🏳️‍🌈👩‍👩‍👧‍👦🇩🇪 :-) ¯\\_(ツ)_/¯",
    "<|startoftext|>",
    "a <|endoftext|> b",
    "a<|endoftext|>b <|STARTOFTEXT|> <|endoftext|",
    "</w> a</w> <b>html</b> &amp;",
    "\x00 \x01 \x7f \ufffd \U0010ffff",
    "(weights:1.2), [brackets], {braces} | pipes \\ / ~ ` ^ $ € £",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "very long prompt " * 60,
    "ｆｕｌｌ ｗｉｄｔｈ ℌ 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 Ǆ",
]


def random_strings(count: int) -> list[str]:
    rng = random.Random(0)
    words = [*" ".join(CORPUS).split(), *STRINGS[:19], *string.punctuation, "'s", "'re", "\n", "\t"]
    glue = ["", " ", "  ", ", ", "-"]
    return [
        "".join(rng.choice(words) + rng.choice(glue) for _ in range(rng.randrange(1, 40)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["SD 1.x", "SD 2.x", "tokenizer.json"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS * 3, folder, vocab_size=800)
    if request.param == "SD 2.x":
        (folder / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    if request.param == "tokenizer.json":
        folder = folder / "resaved"
        theirs.save_pretrained(folder)
        assert not (folder / "merges.txt").exists()
    return Tokenizer.from_folder(folder), theirs


def assert_equal_ids(pair: tuple, texts: list[str]) -> None:
    ours, theirs = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cut prompts
        ids = ours.encode(texts)
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    for text, row, expected_row in zip(texts, ids, expected, strict=True):
        np.testing.assert_array_equal(row, expected_row, err_msg=repr(text))


def test_ids_of_hostile_strings(pair: tuple) -> None:
    assert_equal_ids(pair, STRINGS)


def test_ids_of_random_strings(pair: tuple) -> None:
    assert_equal_ids(pair, random_strings(500))


@hypothesis.settings(max_examples=200)
@hypothesis.given(text=st.text())
def test_ids_of_any_text(pair: tuple, text: str) -> None:
    assert_equal_ids(pair, [text])


def test_the_settings_are_transformers(pair: tuple) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert (ours.start_id, ours.end_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert (ours.pad_id, ours.length) == (theirs.pad_token_id, theirs.model_max_length)


# ---- tokens that a checkpoint added ----

FLAGS = [
    {},
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True, "normalized": False},
    {"single_word": True},
    {"normalized": True},
    {"normalized": False},
    {"special": True},
]
ADDED_STRINGS = [
    "a photo of <my-cat>",
    "<my-cat>",
    "a<my-cat>b super<my-cat>s",
    "<my-cat>, sleeping; (<my-cat>) '<my-cat>'s",
    "a  <my-cat>   b <my-cat><my-cat> <my-cat>",
    "<MY-CAT> <My-Cat>",
    "<my-cat <my -cat> my-cat>",
    "<my-cat>\n<my-cat>\tcafe\u0301<my-cat>\u3000",
    "<my-cat>é <my-cat>2 _<my-cat>_",
    "<Süß> <süß> <SÜSS> <su\u0308ß>",
    "x<|endoftext|><my-cat><|startoftext|> <|ENDOFTEXT|>",
    "<my-cat> " * 80,
]


def added_pair(folder: Path, **files: dict) -> tuple:
    """A tokenizer whose files were changed, as read here and by transformers."""
    train_tokenizer(CORPUS * 3, folder, vocab_size=600)
    for name, changes in files.items():
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | changes))
    return Tokenizer.from_folder(folder), transformers.CLIPTokenizer.from_pretrained(folder)


def assert_added(pair: tuple, count: int = 2) -> None:
    assert pair[0].vocab_size == len(pair[1]) == 600 + count
    assert_equal_ids(pair, ADDED_STRINGS)
    assert_equal_ids(pair, STRINGS)


def test_the_added_tokens_file_gives_transformers_ids(tmp_path: Path) -> None:
    assert_added(added_pair(tmp_path, added_tokens={"<my-cat>": 600, "<Süß>": 601}))


@pytest.mark.parametrize("flags", FLAGS)
def test_the_decoder_of_added_tokens_gives_transformers_ids(tmp_path: Path, flags: dict) -> None:
    entries = {"600": {"content": "<my-cat>", **flags}, "601": {"content": "<Süß>", **flags}}
    assert_added(added_pair(tmp_path, tokenizer_config={"added_tokens_decoder": entries}))


@pytest.mark.parametrize("flags", FLAGS)
def test_a_whole_tokenizer_file_gives_transformers_ids(tmp_path: Path, flags: dict) -> None:
    """As transformers 5 writes it: alone, and beside the files that other versions read."""
    train_tokenizer(CORPUS * 3, tmp_path, vocab_size=600)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens([transformers.AddedToken(text, **flags) for text in ("<my-cat>", "<Süß>")])
    theirs.save_pretrained(tmp_path / "new")
    assert_added((Tokenizer.from_folder(tmp_path / "new"), theirs))
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "new" / "tokenizer.json").read_bytes())
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert_added((Tokenizer.from_folder(tmp_path), again))


@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("numbered", [False, True])
def test_lists_of_special_tokens_give_transformers_ids(
    tmp_path: Path, file: str, key: str, numbered: bool
) -> None:
    files = {file: {key: ["<my-cat>", "<Süß>"]}}
    if numbered:
        files["added_tokens"] = {"<Süß>": 600, "<my-cat>": 601}
    pair = added_pair(tmp_path, **files)
    if numbered and (file, key) == ("special_tokens_map", "additional_special_tokens"):
        # transformers 5 has lost sight of these as special and so ignores case, unlike version 4.
        lower = [text for text in ADDED_STRINGS if "<MY-CAT>" not in text and "<SÜSS>" not in text]
        assert_equal_ids(pair, lower)
        return
    assert_added(pair)


def test_flags_of_the_special_tokens_are_transformers(tmp_path: Path) -> None:
    """Stable Diffusion 1.5's own file has them, normalized and as tables."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    changes = {
        "bos_token": {"content": "<|startoftext|>", **flags},
        "eos_token": {"content": "<|endoftext|>", **flags},
        "pad_token": "<|endoftext|>",
        "unk_token": {"content": "<|endoftext|>", **flags},
    }
    assert_added(added_pair(tmp_path, special_tokens_map=changes), 0)


def test_named_tokens_beyond_the_usual_are_added(tmp_path: Path) -> None:
    changes = {"mask_token": "<my-cat>", "extra_special_tokens": ["<Süß>"]}
    assert_added(added_pair(tmp_path, tokenizer_config=changes))
    other = {"cat_token": "<my-cat>", "extra_special_tokens": {"sweet_token": "<Süß>"}}
    assert_added(added_pair(tmp_path / "other", tokenizer_config=other))
