"""An attention layer as a rule sees it."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from uam_jax.models.kernels.attention import Backend, attend, attention_maps
from uam_jax.models.layers import FromHeads, ToHeads, at_least
from uam_jax.types import Part


class Attention(nn.Module):
    """Multi-head attention's four projections, offered one by one to a rule: an `AttentionSite`.

    The first five fields are those of a `Site`.
    """

    number: int
    level: int
    kind: Literal["own", "cross", "residual"]
    channels: int
    part: Part
    heads: int
    dtype: Any
    qkv_bias: bool = False
    backend: Backend | None = None

    def setup(self):
        to_heads = partial(
            ToHeads, self.channels, self.qkv_bias, dtype=self.dtype, heads=self.heads
        )
        self.to_q, self.to_k = to_heads(), to_heads()
        # A rule may ask for the value of a single token, and for its output, in float32: see `UniformMaps`.
        self.to_v = to_heads(promote_dtype=at_least)
        self.to_out_0 = FromHeads(self.channels, dtype=self.dtype, promote_dtype=at_least)

    def query(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        return self.to_q(x)

    def key(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        return self.to_k(context)

    def value(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        return self.to_v(context)

    def attend(self, q: Array, k: Array, v: Array) -> Float[Array, "b n heads d"]:
        return attend(q, k, v, backend=self.backend)

    def maps(self, q: Array, k: Array) -> Float[Array, "b heads n s"]:
        return attention_maps(q, k)

    def project(self, out: Float[Array, "b n heads d"]) -> Float[Array, "b n c"]:
        return self.to_out_0(out)
