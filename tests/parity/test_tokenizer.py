"""Token ids against transformers' CLIP tokenizer, on vocabularies trained here."""

import random
import string
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from uam_jax.scenes.bpe import train_tokenizer
from uam_jax.tokenizer import Tokenizer

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
