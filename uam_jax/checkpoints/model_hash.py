"""One name for all that decides what a model computes, whatever its files' layout and its folder's name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

PARTS = ("weights", "networks' configs", "scheduler", "tokenizer")
"""Of a model's hash, joined by hyphens."""


def hash_model(*, weights: str, networks: Sequence[Any], schedule: Any, tokenizer: str) -> str:
    """Names a model.

    What the files leave out counts as the default that is taken for it, so that two ways to write the same
    model have one name. The size of the pictures that it was trained on is no part of it, nor `dtype`.

    Args:
      weights: their hash.
      networks: the networks' configs, which are dataclasses; the VAE's has the scale of the latents.
      schedule: a dataclass too: the noise levels and how they are visited.
      tokenizer: the hash of its vocabulary, merges and added tokens.

    Returns:
      The parts' hashes in the order of `PARTS`.
    """
    configs = [asdict(config) for config in networks]
    for config in configs:
        config.pop("sample_size", None)
    return "-".join((weights, short_hash(configs), short_hash(asdict(schedule)), tokenizer[:6]))


def short_hash(value: Any) -> str:
    """Six hex digits of what JSON can tell, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def differences(a: str, b: str) -> str:
    """Names the parts in which two models' hashes differ; nothing where they are equal."""
    pairs = zip(PARTS, a.rsplit("-", 3), b.rsplit("-", 3), strict=False)
    return ", ".join(part for part, mine, theirs in pairs if mine != theirs)
