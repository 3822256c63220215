"""Turns prompts into token ids as CLIP does: byte-level BPE between a start and an end token, padded to 77.

It runs on the host, before the text encoder. The pipeline is rebuilt from vocabulary and merges alone, so the version
of the library that wrote a checkpoint's tokenizer files does not matter.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers

from uam_jax.errors import InputError
from uam_jax.files import read_json, read_text

START = "<|startoftext|>"
END = "<|endoftext|>"
END_OF_WORD = "</w>"
LENGTH = 77

_PIECES = (
    rf"{re.escape(START)}|{re.escape(END)}"
    r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


def clip_pipeline(model: models.BPE) -> tokenizers.Tokenizer:
    """Builds CLIP's text pipeline around a BPE model: lower case, single blanks, words, bytes."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
      backend: the text pipeline, without start, end and padding.
      start_id: id of the first token of every prompt.
      end_id: id of the token after the last word.
      pad_id: id that fills a prompt up to `length`: the end token in SD 1.x, `!` (0) in SD 2.x.
      reached: the ids that some text has: those of added tokens, and of the tokens that merges make from bytes.
      fingerprint: a hash of everything that decides the ids, the same on every machine.
      length: number of tokens per prompt.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    start_id: int
    end_id: int
    pad_id: int
    reached: frozenset[int] = field(repr=False)
    fingerprint: str = field(repr=False)
    length: int = LENGTH

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads `vocab.json` and `merges.txt`, or `tokenizer.json` where only that exists.

        Added tokens, for example those of textual inversion, are read from all places where tokenizers keep them; see
        `_read_added`. The text of an added or special token inside a prompt becomes that token. In SD 2.x every `!` is
        therefore padding, unlike in the tokenizer that SD 2.x was trained with.

        Raises:
          InputError: a file is missing or does not parse, names special tokens that the vocabulary lacks, or
            contradicts another file about the id of a token.
        """
        folder = Path(folder)
        vocabulary, merges = _read_bpe(folder)
        config = _read_optional(folder / "tokenizer_config.json")
        names = dict(config)
        if config.get("added_tokens_decoder") is None:
            names |= _read_optional(folder / "special_tokens_map.json")
        added = _read_added(folder, config, names, vocabulary)
        roles: dict[str, tokenizers.AddedToken] = {}

        def special(key: str, default: str) -> str:
            value = names.get(key) or default
            token = value.get("content") if isinstance(value, Mapping) else value
            if not isinstance(token, str) or token not in vocabulary:
                raise InputError(f"{folder}: the {key} {token!r} is not in the vocabulary")
            roles[token] = _added_token(
                value, folder, special=True
            )  # if a token has two roles, the last one counts
            return token

        start, end = special("bos_token", START), special("eos_token", END)
        unknown, pad = special("unk_token", end), special("pad_token", end)
        try:
            model = models.BPE(
                vocab=vocabulary, merges=merges, unk_token=unknown, end_of_word_suffix=END_OF_WORD
            )
        except Exception as error:  # the Rust library raises bare Exception
            raise InputError(f"{folder}: merges and vocabulary do not fit: {error}") from None
        backend = clip_pipeline(model)
        searched = roles | added
        backend.add_tokens(list(searched.values()))
        length = config.get("model_max_length")
        if length is None or (isinstance(length, int | float) and length > 10**6):
            length = LENGTH  # "no limit" is written as 1e30
        if not isinstance(length, int) or length < 2:
            raise InputError(f"{folder}/tokenizer_config.json: model_max_length is {length}")
        ids = vocabulary[start], vocabulary[end], vocabulary[pad]
        flags = [
            (text, t.single_word, t.lstrip, t.rstrip, t.normalized) for text, t in searched.items()
        ]
        made = {*searched, *(left + right for left, right in merges)}
        reached = frozenset(
            id_
            for token, id_ in vocabulary.items()
            if token in made or len(token.removesuffix(END_OF_WORD)) == 1
        )
        content = (vocabulary, merges, sorted(flags), unknown, ids, length)
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return cls(backend, *ids, reached, fingerprint, length=length)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens by text, including added tokens."""
        return self.backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self.vocabulary.values()) + 1

    def tokens(self, text: str) -> list[tuple[int, int, int]]:
        """The tokens of a prompt that fit, without start, end and padding.

        Returns:
          Of each its id, its first character in `text` and the one after its last.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        room = self.length - 2
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [(id_, *span) for id_, span in list(found)[:room]]

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "b s"]:
        """Turns prompts into int32 ids (b, `length`); `""` becomes start, end and padding.

        A prompt that is too long is cut, with a `UserWarning` that quotes the part without effect.

        Raises:
          InputError: a prompt is not valid Unicode text.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a sequence of prompts; put a single one in a list")
        ids = np.full((len(texts), self.length), self.pad_id, np.int32)
        for row, text in zip(ids, texts, strict=True):
            try:
                encoding = self.backend.encode(text, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):
                raise InputError(f"the prompt {text!r} is not valid Unicode text") from None
            room = self.length - 2
            if len(encoding.ids) > room:
                lost = _shortened(text[encoding.offsets[room][0] :])
                warnings.warn(
                    f"the prompt has {len(encoding.ids)} tokens, of which {room} fit; this part "
                    f'has no effect: "{lost}"',
                    UserWarning,
                    stacklevel=2,
                )
            tokens = [self.start_id, *encoding.ids[:room], self.end_id]
            row[: len(tokens)] = tokens
        return ids


def unknown_words(texts: Sequence[str], vocabulary: Collection[str]) -> list[str]:
    """Lists once each word of the prompts that is not in a vocabulary."""
    words = (word for text in texts for word in re.findall(r"[^\s.,;:!?\"'()-]+", text.lower()))
    return [word for word in dict.fromkeys(words) if word not in vocabulary]


def _read_bpe(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the vocabulary and the merges from either of the two layouts."""
    pair, single = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    if all(file.is_file() for file in pair):
        source, vocabulary = pair[0], read_json(pair[0])
        lines = read_text(pair[1]).split("\n")
        merges = [line.split() for line in lines if line and not line.startswith("#version")]
    elif single.is_file():
        source, bpe = single, read_json(single).get("model")
        if not isinstance(bpe, dict) or bpe.get("end_of_word_suffix") != END_OF_WORD:
            raise InputError(f"{single}: not a CLIP tokenizer (BPE with the word ending '</w>')")
        vocabulary, merges = bpe.get("vocab"), bpe.get("merges")
        if isinstance(merges, list):
            merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    else:
        raise InputError(
            f"{folder}: there is no tokenizer here (vocab.json and merges.txt, or tokenizer.json)"
        )
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise InputError(f"{source}: not a vocabulary (a table from token to id)")
    if not isinstance(merges, list) or not all(
        isinstance(merge, list) and len(merge) == 2 for merge in merges
    ):
        raise InputError(f"{folder}: a merge is not a pair of tokens")
    return vocabulary, [(left, right) for left, right in merges]


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def _read_added(
    folder: Path, config: Mapping[str, Any], names: Mapping[str, Any], vocabulary: dict[str, int]
) -> dict[str, tokenizers.AddedToken]:
    """Reads the tokens that were added to a vocabulary, and adds them to it with their ids.

    Files keep added tokens in four places. As in transformers, `added_tokens_decoder` of `tokenizer_config.json` is
    used alone if it exists; otherwise `added_tokens.json` and then the `added_tokens` of `tokenizer.json` are used.
    The lists of further special tokens come last. They have no ids: tokens that no other place names get the ids after
    the largest one.

    Args:
      folder: the folder of the tokenizer.
      config: the contents of `tokenizer_config.json`.
      names: the same, overlaid by `special_tokens_map.json` where that counts.
      vocabulary: the ids by token, to which the added tokens are added.

    Returns:
      The added tokens by their text. They are found in a prompt before it is split into words.

    Raises:
      InputError: an entry is not a token, or its id contradicts another file.
    """
    further = [
        value for key, value in names.items() if key.endswith("_token") and key not in _ROLES
    ]
    further = [value for value in further if isinstance(_content(value), str)]
    further += [
        value for key in _LISTS for table in (config, names) for value in _listed(table, key)
    ]
    special = [_content(value) for value in (*further, *map(names.get, _ROLES))]
    found: list[tuple[Path, Any, Any, bool]] = []
    if (listed := config.get("added_tokens_decoder")) is not None:
        source = folder / "tokenizer_config.json"
        if not isinstance(listed, Mapping):
            raise InputError(f"{source}: added_tokens_decoder is not a table from id to token")
        found += [(source, value, id_, False) for id_, value in listed.items()]
    else:
        source = folder / "added_tokens.json"
        found += [(source, t, id_, t in special) for t, id_ in _read_optional(source).items()]
        source = folder / "tokenizer.json"
        listed = _read_optional(source).get("added_tokens") or []
        if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
            raise InputError(f"{source}: added_tokens is not a list of tokens")
        found += [(source, entry, entry.get("id"), False) for entry in listed]

    added = {}
    texts = {id_: text for text, id_ in vocabulary.items()}
    for source, value, number, is_special in found:
        token = _added_token(value, source, special=is_special)
        id_ = int(number) if isinstance(number, str) and number.isdecimal() else number
        if type(id_) is not int or id_ < 0:
            raise InputError(f"{source}: the id of {token.content!r} is {number!r}")
        if texts.setdefault(id_, token.content) != token.content:
            raise InputError(
                f"{source}: id {id_} is {token.content!r} here and {texts[id_]!r} elsewhere in {folder}"
            )
        if vocabulary.setdefault(token.content, id_) != id_:
            raise InputError(
                f"{source}: {token.content!r} is id {id_} here and {vocabulary[token.content]} "
                f"elsewhere in {folder}"
            )
        added[token.content] = token
    for value in further:
        token = _added_token(value, folder, special=True)
        vocabulary.setdefault(token.content, max(vocabulary.values(), default=-1) + 1)
        added.setdefault(token.content, token)
    return added


def _listed(table: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The tokens of a list, or of a table by name."""
    value = table.get(key) or []
    value = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(value, list):
        raise InputError(f"{key} in the tokenizer's files is {value!r}, not a list of tokens")
    return value


def _content(value: Any) -> Any:
    """The text of a token, which a file has alone or in a table with flags."""
    return value.get("content") if isinstance(value, Mapping) else value


def _added_token(value: Any, where: Path, *, special: bool) -> tokenizers.AddedToken:
    content = _content(value)
    if not isinstance(content, str) or not content:
        raise InputError(f"{where}: the added token {value!r} is not text")
    flags = value if isinstance(value, Mapping) else {}
    given: dict[str, Any] = {flag: bool(flags[flag]) for flag in _FLAGS if flag in flags}
    try:
        return tokenizers.AddedToken(content, **{"special": special, **given})
    except UnicodeEncodeError:
        raise InputError(f"{where}: the added token {content!r} is not valid Unicode") from None


def _shortened(text: str, most: int = 300) -> str:
    """Puts a text on one line and cuts it after about `most` characters, between words if possible."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return f"{text[:most].rpartition(' ')[0] or text[:most]} ..."
