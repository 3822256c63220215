"""Layers whose weights cost little to trace."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class Weighted(nn.Module):
    """A layer that runs no initialiser for weights that it is given.

    A weight that is there is taken as it is: `load_params` has compared its shape, and flax would trace every
    initialiser in every program to compare it again. Without a random key, as in `expected_params`, a missing
    weight is zeros.
    """

    def param(
        self,
        name: str,
        init_fn: Any,
        shape: Sequence[int],
        dtype: Any = jnp.float32,
        **options: Any,
    ) -> Any:
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        if self.is_mutable_collection("params") and not self.has_rng("params"):
            self.put_variable("params", name, jnp.zeros(shape, dtype))
            return self.get_variable("params", name)
        return super().param(name, init_fn, shape, dtype, **options)
