"""CLIP's text encoder: token ids -> one state per token, for Stable Diffusion 1.x and 2.x."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uam_jax.models.configs import TextConfig
from uam_jax.models.layers import Dense, Embed, LayerNorm


class _CausalSelfAttention(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        def project(name: str) -> Array:
            projected = Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
            return projected.reshape(*x.shape[:2], self.heads, -1).astype(jnp.float32)

        q, k, v = (project(name) for name in ("q_proj", "k_proj", "v_proj"))
        # 77 tokens once per prompt: no fused kernel and no half precision is worth its conditions.
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        return Dense(x.shape[-1], dtype=self.dtype, name="out_proj")(out.reshape(x.shape))


class _MLP(nn.Module):
    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        h = Dense(self.config.mlp_width, dtype=self.dtype, name="fc1")(x)
        quick = self.config.activation == "quick_gelu"
        h = h * nn.sigmoid(1.702 * h) if quick else nn.gelu(h, approximate=False)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class _Layer(nn.Module):
    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        attention = _CausalSelfAttention(self.config.heads, self.dtype, name="self_attn")
        x = x + attention(LayerNorm(self.config.norm_eps, name="layer_norm1")(x))
        mlp = _MLP(self.config, self.dtype, name="mlp")
        return x + mlp(LayerNorm(self.config.norm_eps, name="layer_norm2")(x))


class _Encoder(nn.Module):
    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        for i in range(self.config.layers):
            x = _Layer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x


class _Embeddings(nn.Module):
    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        config = self.config
        tokens = Embed(config.vocab_size, config.width, dtype=self.dtype, name="token_embedding")
        positions = Embed(
            config.max_tokens, config.width, dtype=self.dtype, name="position_embedding"
        )
        return tokens(ids) + positions(jnp.arange(ids.shape[1]))


class _TextTransformer(nn.Module):
    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        x = _Embeddings(self.config, self.dtype, name="embeddings")(ids)
        x = _Encoder(self.config, self.dtype, name="encoder")(x)
        return LayerNorm(self.config.norm_eps, name="final_layer_norm")(x)


class TextEncoder(nn.Module):
    """The last layer's states after the final norm; no padding mask, as Stable Diffusion uses it."""

    config: TextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        return _TextTransformer(self.config, self.dtype, name="text_model")(ids).astype(jnp.float32)

    def example_inputs(self) -> tuple[Any, ...]:
        """Arguments of the smallest call, for `expected_params`."""
        return (jnp.zeros((1, self.config.max_tokens), jnp.int32),)
