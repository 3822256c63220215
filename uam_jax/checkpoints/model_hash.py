"""A hash of everything that decides a model's results, independent of the layout of its files and its folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

PARTS = ("weights", "networks' configs", "scheduler", "tokenizer")
"""Parts of a model's hash, which are joined by hyphens."""


def hash_model(*, weights: str, networks: Sequence[Any], schedule: Any, tokenizer: str) -> str:
    """Hashes a model.

    A value that the files leave out counts as its default, so that two ways to write the same model have one hash. The
    size of the pictures that the model was trained on and `dtype` are not part of the hash.

    Args:
      weights: the hash of the weights.
      networks: the networks' configs, which are dataclasses; that of the VAE has the scale of the latents.
      schedule: the noise levels and their spacing, also a dataclass.
      tokenizer: the hash of the tokenizer's vocabulary, merges and added tokens.

    Returns:
      The hashes of the parts in the order of `PARTS`, joined by hyphens.
    """
    configs = [asdict(config) for config in networks]
    for config in configs:
        config.pop("sample_size", None)
    return "-".join((weights, short_hash(configs), short_hash(asdict(schedule)), tokenizer[:6]))


def short_hash(value: Any) -> str:
    """Hashes a value that JSON can hold to six hex digits, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def differences(a: str, b: str) -> str:
    """Names the parts in which two models' hashes differ; "" if they are equal."""
    pairs = zip(PARTS, a.rsplit("-", 3), b.rsplit("-", 3), strict=False)
    return ", ".join(part for part, mine, theirs in pairs if mine != theirs)
