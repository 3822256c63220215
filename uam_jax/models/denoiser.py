"""The one face of a model family, which the rest of the package sees, and Stable Diffusion's."""

import functools
from dataclasses import dataclass, replace
from typing import Protocol, Self

import jax
from jaxtyping import Array, Int, Num

from uam_jax.models.clip_text import TextEncoder
from uam_jax.models.kernels.attention import Backend, attention_backend
from uam_jax.models.unet import UNet, sites_of
from uam_jax.runtime.platforms import Platform
from uam_jax.types import PLAIN, Condition, Latent, Params, Rules, Site, Taps


class Denoiser(Protocol):
    """A model family: the network that predicts, and the encoders of its conditions.

    It is hashable and holds no arrays: `params` is the checkpoint's whole dict of weights.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where rules are called, in execution order."""
        ...

    @property
    def native_side(self) -> int:
        """The side of the latents that the model was trained on."""
        ...

    @property
    def side_multiple(self) -> int:
        """Sides of latents are multiples of this."""
        ...

    def condition(
        self, params: Params, tokens: Int[Array, "b s"], size: tuple[int, int] | None = None
    ) -> Condition:
        """Encodes texts.

        Args:
          params: of the checkpoint.
          tokens: ids of every text's tokens.
          size: height and width of the pictures, for families whose condition names them.
        """
        ...

    def predict(
        self,
        params: Params,
        latent: Latent,
        time: Num[Array, ""],
        condition: Condition,
        rules: Rules = PLAIN,
    ) -> tuple[Latent, Taps]:
        """One evaluation.

        Args:
          params: of the checkpoint.
          latent: noisy latents.
          time: the time that the network takes, in the schedule's own units.
          condition: of every example, or one for all.
          rules: of this call.

        Returns:
          The network's output (noise, velocity or whatever the schedule says) and the taps.
        """
        ...

    def with_attention(self, backend: Backend | None) -> Self:
        """The same model whose attention is computed by `backend`; None: by the best for each level."""
        ...

    def attention_backends(self, platform: Platform) -> set[Backend]:
        """The implementations of self-attention on a platform at the native size."""
        ...


@dataclass(frozen=True)
class StableDiffusion(Denoiser):
    """Stable Diffusion 1.x and 2.x: a U-Net and a CLIP text encoder."""

    unet: UNet
    text_encoder: TextEncoder

    @property
    def sites(self) -> tuple[Site, ...]:
        return sites_of(self.unet.config)

    @property
    def native_side(self) -> int:
        return self.unet.config.sample_size

    @property
    def side_multiple(self) -> int:
        return 2 ** (len(self.unet.config.channels) - 1)

    def condition(
        self, params: Params, tokens: Int[Array, "b s"], size: tuple[int, int] | None = None
    ) -> Condition:
        del size
        encode = functools.partial(self.text_encoder.apply, {"params": params["text_encoder"]})
        # Text by text, so that a text's states never depend on what else is in the batch.
        return Condition(jax.lax.map(lambda text: encode(text[None])[0], tokens))

    def predict(
        self,
        params: Params,
        latent: Latent,
        time: Num[Array, ""],
        condition: Condition,
        rules: Rules = PLAIN,
    ) -> tuple[Latent, Taps]:
        return self._predict(params["unet"], latent, time, condition.states, rules)

    # Traced once for all programs and loops with the same shapes and rules.
    @functools.partial(jax.jit, static_argnames="self")
    def _predict(
        self, params: Params, latent: Latent, time: Num[Array, ""], states: Array, rules: Rules
    ) -> tuple[Latent, Taps]:
        return self.unet.apply({"params": params}, latent, time[None], states, rules)

    def with_attention(self, backend: Backend | None) -> Self:
        return replace(self, unet=self.unet.clone(backend=backend))

    def attention_backends(self, platform: Platform) -> set[Backend]:
        config, found = self.unet.config, set[Backend]()
        for level, (width, heads) in enumerate(zip(config.channels, config.heads, strict=True)):
            shape = (1, (self.native_side // 2**level) ** 2, heads, width // heads)
            found.add(attention_backend(shape, self.unet.dtype, platform))
        return found
