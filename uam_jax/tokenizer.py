"""Prompt -> token ids, as CLIP reads text: byte-level BPE between start and end token, padded to 77.

Runs on the host, before the text encoder. The pipeline is rebuilt from vocabulary and merges alone,
so it doesn't matter which version of which library wrote a checkpoint's tokenizer files.
"""

import re
import textwrap
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
    """Puts CLIP's way of reading text before a BPE model: lower case, single blanks, words, bytes."""
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
      pad_id: id that fills up to `length`: the end token in SD 1.x, `!` (0) in SD 2.x.
      length: tokens per prompt.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    start_id: int
    end_id: int
    pad_id: int
    length: int = LENGTH

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads `vocab.json` and `merges.txt`, or `tokenizer.json` where only that exists.

        As in transformers, `special_tokens_map.json` wins over `tokenizer_config.json` unless the
        latter lists its added tokens; and the text of a special token inside a prompt is that token:
        in SD 2.x every `!` is padding, unlike in the tokenizer that SD 2.x was trained with.

        Raises:
          InputError: a file is missing, doesn't parse, or names tokens that the vocabulary lacks.
        """
        folder = Path(folder)
        vocabulary, merges = _read_bpe(folder)
        config = _read_optional(folder / "tokenizer_config.json")
        names = dict(config)
        if "added_tokens_decoder" not in config:
            names |= _read_optional(folder / "special_tokens_map.json")

        def special(key: str, default: str) -> str:
            token = names.get(key) or default
            token = token.get("content") if isinstance(token, Mapping) else token
            if not isinstance(token, str) or token not in vocabulary:
                raise InputError(f"{folder}: the {key} {token!r} is not in the vocabulary")
            return token

        start, end = special("bos_token", START), special("eos_token", END)
        pad, unknown = special("pad_token", end), special("unk_token", end)
        try:
            model = models.BPE(
                vocab=vocabulary, merges=merges, unk_token=unknown, end_of_word_suffix=END_OF_WORD
            )
        except Exception as error:  # the Rust library raises bare Exception
            raise InputError(f"{folder}: merges and vocabulary don't fit: {error}") from None
        backend = clip_pipeline(model)
        backend.add_special_tokens(
            [
                tokenizers.AddedToken(token, special=True, normalized=False)
                for token in dict.fromkeys((start, end, pad, unknown))
            ]
        )
        length = config.get("model_max_length")
        if length is None or (isinstance(length, int | float) and length > 10**6):
            length = LENGTH  # "no limit" is written as 1e30
        if not isinstance(length, int) or length < 2:
            raise InputError(f"{folder}/tokenizer_config.json: model_max_length is {length}")
        ids = (vocabulary[token] for token in (start, end, pad))
        return cls(backend, *ids, length=length)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "b s"]:
        """Turns prompts into int32 ids, `length` each; `""` is start, end and padding.

        A prompt that is too long is cut, with a `UserWarning` that names the words that have no effect.

        Raises:
          InputError: a prompt isn't text.
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
                # A word that is cut in two is lost as well.
                kept = re.sub(r"\S*$", "", text[: encoding.offsets[room][0]])
                lost = textwrap.shorten(text[len(kept) :], 300, placeholder=" ...")
                warnings.warn(
                    f"the prompt has {len(encoding.ids)} tokens, {room} fit; these words "
                    f'have no effect: "{lost}"',
                    UserWarning,
                    stacklevel=2,
                )
            tokens = [self.start_id, *encoding.ids[:room], self.end_id]
            row[: len(tokens)] = tokens
        return ids


def unknown_words(texts: Sequence[str], vocabulary: Collection[str]) -> list[str]:
    """Lists the prompts' words, each once, that a model with this vocabulary has never seen."""
    words = (word for text in texts for word in re.findall(r"[^\s.,;:!?\"'()-]+", text.lower()))
    return [word for word in dict.fromkeys(words) if word not in vocabulary]


def _read_bpe(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the vocabulary and the merges from whichever of the two layouts is there."""
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
            f"{folder}: no tokenizer here (vocab.json and merges.txt, or tokenizer.json)"
        )
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise InputError(f"{source}: not a vocabulary (a table from token to id)")
    if not isinstance(merges, list) or not all(
        isinstance(merge, list) and len(merge) == 2 for merge in merges
    ):
        raise InputError(f"{folder}: a merge isn't a pair of tokens")
    return vocabulary, [(left, right) for left, right in merges]


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
