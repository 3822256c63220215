"""An editor with a tiny random model, its settings, and the variants of an edit that tests go through."""

import dataclasses
from pathlib import Path

import numpy as np
from checkpoint_files import write_checkpoint

from uam_jax import EditConfig, Editor

MASKED = EditConfig.load("released", ["auxiliary.latents=anchored", "preserve=pixels"])
"""The released run with an anchored auxiliary branch: every part of an edit has something to do."""
SMALL = MASKED.updated(
    {
        "steps": 6,
        "guidance": 3.0,
        "preserve": "latent",
        "mask": {"t_mask": 400},
        "control": {"step_start": 1, "block_start": 1},
    }
)
SOURCE, TARGET = "a red cube", "a blue ball"


def tiny_editor(folder: Path) -> Editor:
    write_checkpoint(folder, scale=1 / 16)
    checkpoint = dataclasses.replace(Editor.load(folder).checkpoint, weights_hash="tiny")
    return Editor(checkpoint)


def assert_close(a: object, b: object, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=tolerance)


VARIANTS = {
    "masked": {},
    "default": {"source": {"latents": "anchored"}, "control": "plug-and-play"},
    "captioned": {
        "source": {"condition": "prompt", "latents": "anchored"},
        "control": {"kind": "prompt-to-prompt", "local_blend": False},
    },
    "released": {"auxiliary": {"latents": "replay"}},
    "anchored source": {"source": {"latents": "anchored"}},
    "no control": {"source": {"latents": "anchored"}, "control": "none", "agreement": True},
    "original": {"auxiliary": {"latents": "original"}},
    "prompt": {"source": {"condition": "prompt"}, "inversion": {"guidance": 2.0}},
    "no guidance": {"guidance": 1.0, "source": {"condition": "prompt"}},
    "shared inversion": {"inversion": {"uniformity": 1.0}, "auxiliary": {"latents": "replay"}},
    "no mask": {"mask": {"rule": "none"}},
    "algorithm1": {"mask": {"rule": "algorithm1"}},
    "auto": {"mask": {"rule": "auto"}},
    "region": {
        "target": {"outside_uniformity": 0.5},
        "source": {"latents": "anchored"},
        "control": "none",
    },
    "fixed point": {"inversion": {"kind": "fixed_point", "iterations": 2}},
    "shared fixed point": {
        "inversion": {"kind": "fixed_point", "iterations": 1, "anderson": True, "uniformity": 1.0},
        "auxiliary": {"latents": "replay"},
    },
    "second order": {"sampler": "dpm++2m"},
    "of a user": {
        "control": "my_module:MyControl",
        "inversion": {"kind": "my_module:MyInversion"},
    },
    "text auxiliary": {"auxiliary": {"uniformity": 0.0}},
}
