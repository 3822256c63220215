"""Trains the embedded model's tokenizer: CLIP's format, its own captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from uam_jax.checkpoints.tokenizer import END, END_OF_WORD, LENGTH, START, Tokenizer, clip_pipeline


def train_tokenizer(captions: Iterable[str], folder: str | Path, *, vocab_size: int) -> Tokenizer:
    """Learns byte-pair merges and writes them as a CLIP tokenizer, which transformers can load as well.

    Ids are ordered as in CLIP: every byte, every byte that ends a word, the merges, `<|startoftext|>`,
    `<|endoftext|>`. The same captions give the same files.

    Args:
      captions: the texts to learn from.
      folder: for vocab.json, merges.txt and the two config files; created if necessary.
      vocab_size: the largest allowed vocabulary, above 514. When every word is a token, no merge is left,
        and the result's `vocab_size` is smaller.

    Returns:
      The tokenizer, loaded from the folder.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]
    if vocab_size <= len(tokens) + 2:
        raise ValueError(
            f"vocab_size is {vocab_size}: more than 514 are needed to leave room for merges"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        # By default the trainer numbers the word endings in the order of a hash table, and ties between
        # merges depend on these numbers. Special tokens have fixed numbers.
        special_tokens=tokens,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner = clip_pipeline(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.train_from_iterator(captions, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    tokens += [*("".join(pair) for pair in merges), START, END]

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    for name, value in {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Tokenizer.from_folder(folder)
