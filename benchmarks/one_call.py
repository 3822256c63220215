"""The U-Net's evaluations alone: an edit's program in which every step is one network call of all rows.

A call has a row for the source and two for the target of each picture, and MasaCtrl is active. There is no VAE, no
mask and no inversion, so that evaluations per second are those of the network as an edit runs it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from uam_jax import EditConfig, Editor
from uam_jax.engine import programs
from uam_jax.method.edit import EditInputs
from uam_jax.method.edits import Edit

PARTS = 3
"""Rows of a call for each picture."""

TARGET = "a blue cube on a wooden table"


def calls_only(calls: int) -> EditConfig:
    """Settings under which each of the steps is a call of `PARTS` rows for every picture, and nothing else happens."""
    return EditConfig.load("released").updated(
        {
            "steps": calls,
            "preserve": "latent",
            "mask": {"rule": "none"},
            "control": {"step_start": 0},
        }
    )


def start_of(batch: int, side: int, channels: int) -> np.ndarray:
    """Noise to start from, (batch, side, side, channels)."""
    return np.random.default_rng(0).standard_normal((batch, side, side, channels), np.float32)


def evaluations(
    editor: Editor, batch: int, side: int, config: EditConfig
) -> Callable[[], jax.Array]:
    """A function that makes the calls, one after the other in one compiled loop.

    Args:
      editor: a model.
      batch: a third of the rows.
      side: of the latents.
      config: from `calls_only`.

    Returns:
      A function that returns the target's latents when they are computed, (batch, side, side, channels).
    """
    start = jnp.asarray(start_of(batch, side, editor.latent_channels))
    null = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])), editor.inverter.null
    )
    arrays = programs.EditArrays(
        conditions=editor.inverter.conditions([Edit(TARGET)] * batch, null, config),
        inputs=EditInputs(),
        mask=config.mask.to_rule(),
        guidance=config.guidance,
        control_data={},
    )
    # Trees before `Control.fitted` have no sites.
    sites = [editor.sites] if hasattr(editor, "sites") else []
    course = programs.EditCourse.of(config, editor.plan(config), *sites)
    model = editor.inverter.model()

    def run() -> jax.Array:
        # A copy, since the program takes the memory of its start.
        trace = programs.edit(model, editor.params, jnp.copy(start), arrays, course=course)
        return jax.block_until_ready(trace.target)

    return run
