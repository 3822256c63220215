"""A procedural world of captioned pictures, in which every edit has an exact answer.

```
sample ─▶ Scene ─ captions ─▶ prompt        Scene.replace ─▶ edited Scene ─ render ─▶ true target
            └──── render ───▶ picture [-1,1] ─ nearest_attributes ─▶ what a picture shows
```
"""

from uam_jax.scenes.nearest import nearest_alternative, nearest_attributes
from uam_jax.scenes.render import edit_mask, object_mask, render, render_in_chunks
from uam_jax.scenes.world import (
    ATTRIBUTES,
    COLOURS,
    EMPTY,
    LIGHTS,
    PLACES,
    SHAPES,
    SIZES,
    SURFACES,
    VOCABULARY,
    WALLS,
    Scene,
    alternatives,
    caption,
    captions,
    concatenate,
    flatten,
    make_scene,
    read_caption,
    sample,
)

__all__ = [
    "ATTRIBUTES",
    "COLOURS",
    "EMPTY",
    "LIGHTS",
    "PLACES",
    "SHAPES",
    "SIZES",
    "SURFACES",
    "VOCABULARY",
    "WALLS",
    "Scene",
    "alternatives",
    "caption",
    "captions",
    "concatenate",
    "edit_mask",
    "flatten",
    "make_scene",
    "nearest_alternative",
    "nearest_attributes",
    "object_mask",
    "read_caption",
    "render",
    "render_in_chunks",
    "sample",
]
