"""Attention: one layer, and the rules that say what it computes (text maps, uniform maps, its own pixels).

A rule is any function `(site, x, block) -> output` (see `types.AttentionRule`); a control is another. What a
rule closes over is a pytree (`Partial`), so that one trace of the network serves every program with its shapes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from uam_jax.types import AttentionRule, AttentionSite, Params

Backend = Literal["cudnn", "xla"]


class Attention(nn.Module):
    """Multi-head attention's four projections, offered one by one to a rule (an `AttentionSite`)."""

    width: int
    heads: int
    dtype: Any
    qkv_bias: bool = False

    def setup(self):
        self.to_q = nn.Dense(self.width, use_bias=self.qkv_bias, dtype=self.dtype)
        self.to_k = nn.Dense(self.width, use_bias=self.qkv_bias, dtype=self.dtype)
        self.to_v = nn.Dense(self.width, use_bias=self.qkv_bias, dtype=self.dtype)
        self.to_out_0 = nn.Dense(self.width, dtype=self.dtype)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    def query(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        return self._split(self.to_q(x))

    def key(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        return self._split(self.to_k(context))

    def value(self, context: Float[Array, "b s e"]) -> Float[Array, "b s heads d"]:
        return self._split(self.to_v(context))

    def attend(self, q: Array, k: Array, v: Array) -> Float[Array, "b n heads d"]:
        return attend(q, k, v)

    def project(self, out: Float[Array, "b n heads d"]) -> Float[Array, "b n c"]:
        return self.to_out_0(out.reshape(*out.shape[:2], self.width))


def attend(
    q: Float[Array, "b n heads d"], k: Float[Array, "#b s heads d"], v: Float[Array, "#b s heads d"]
) -> Float[Array, "b n heads d"]:
    """softmax(QKᵀ/√d)V, logits and softmax in float32; one row of keys and values may serve all."""
    k, v = (jnp.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in (k, v))
    backend = attention_backend(q.shape, q.dtype, jax.default_backend())
    if backend == "xla" and q.dtype == jnp.float16:
        # XLA's CPU has no float16 product with float32 sums.
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        return jax.nn.dot_product_attention(*wide, implementation=backend).astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, implementation=backend)


def attention_backend(shape: Sequence[int], dtype: Any, platform: str) -> Backend:
    """Which implementation computes `attend`: `"cudnn"` (fused) or `"xla"`.

    cuDNN's fused kernel takes half precision and head widths up to 128 that are multiples of 8.

    Args:
      shape: of the queries, (b, n, heads, d).
      dtype: of the queries.
      platform: `jax.default_backend()`.
    """
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))
    width = shape[-1]
    return "cudnn" if platform == "gpu" and half and width <= 128 and width % 8 == 0 else "xla"


def self_attention(site: AttentionSite, x: Float[Array, "b n c"], block: int) -> Array:
    """The plain rule for self-attention: every pixel attends to every pixel."""
    del block
    return site.project(site.attend(site.query(x), site.key(x), site.value(x)))


def text_attention(states: Float[Array, "b s e"]) -> AttentionRule:
    """The plain rule for cross-attention: every pixel attends to the text."""
    return Partial(_text, states)


def uniform_attention(vectors: Sequence[Float[Array, "#b _"]]) -> AttentionRule:
    """Uniform maps (§3.3.1): the layer's output is one vector for all pixels, known in advance.

    Args:
      vectors: `uniform_vectors` of the context, one per transformer block.
    """
    return Partial(_uniform, vectors)


def mixed_attention(
    states: Float[Array, "b s e"],
    vectors: Sequence[Float[Array, "#b _"]],
    uniformity: float | Array,
) -> AttentionRule:
    """Maps between the text's (0) and uniform ones (1): `(1 - u) softmax(QKᵀ/√d) + u / S`.

    The output projection is affine, so mixing its outputs is mixing the maps.
    """
    return Partial(_mixed, states, vectors, uniformity)


def _text(states: Array, site: AttentionSite, x: Array, block: int) -> Array:
    del block
    return site.project(site.attend(site.query(x), site.key(states), site.value(states)))


def _uniform(vectors: Sequence[Array], site: AttentionSite, x: Array, block: int) -> Array:
    del site
    return vectors[block][:, None, :].astype(x.dtype)


def _mixed(
    states: Array,
    vectors: Sequence[Array],
    uniformity: float | Array,
    site: AttentionSite,
    x: Array,
    block: int,
) -> Array:
    text, uniform = _text(states, site, x, block), _uniform(vectors, site, x, block)
    return (1 - uniformity) * text + uniformity * uniform


def uniform_vectors(
    unet_params: Params, states: Float[Array, "b s e"]
) -> tuple[Float[Array, "b _"], ...]:
    """`to_out(mean_s V)` of every cross-attention layer, in execution order (§3.3.1).

    They depend on weights and context alone: computed once, used in every step and for every image.
    """
    mean = states.astype(jnp.float32).mean(axis=1)
    vectors = []
    for attn in _cross_attention_params(unet_params):
        value = mean @ attn["to_v"]["kernel"].astype(jnp.float32)
        out = attn["to_out_0"]
        vectors.append(value @ out["kernel"].astype(jnp.float32) + out["bias"].astype(jnp.float32))
    return tuple(vectors)


def _cross_attention_params(tree: Params) -> list[Params]:
    def order(name: str) -> tuple[int, int]:
        index = name.rsplit("_", 1)[-1]
        rank = next((i for i, part in enumerate(("down", "mid", "up")) if name.startswith(part)), 0)
        return rank, int(index) if index.isdigit() else 0

    if "attn2" in tree:
        return [tree["attn2"]]
    inner = [tree[name] for name in sorted(tree, key=order) if isinstance(tree[name], dict)]
    return [found for subtree in inner for found in _cross_attention_params(subtree)]
