"""How far an edit can be trusted: signals that it leaves anyway, and one number from them.

Nothing here knows the right answer. The auxiliary branch tells how well the model can reproduce this
picture at all, the source branch whether denoising came back to where it started, and the masks whether the
two prompts disagree in one place or everywhere.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from uam_jax.edit import EditTrace
from uam_jax.masks import otsu, smooth
from uam_jax.types import Image, Latent

Signals = dict[str, Float[Array, "t"]]


def error_map(images: Image, rebuilt: Image) -> Float[Array, "b height width"]:
    """Absolute difference of two pictures, mean over channels, as a share of the range."""
    return jnp.abs(images - rebuilt).mean(axis=-1) / 2


def edit_signals(
    images: Image, rebuilt: Image, z0: Latent, start: Latent, trace: EditTrace
) -> Signals:
    """What an edit tells about itself, each a number per target.

    Args:
      images: the originals, in [-1, 1].
      rebuilt: what the auxiliary branch made of them; the VAE's picture where nothing was blended.
      z0: the originals' latents.
      start: the latents that the edit began with, which ought to look like noise.
      trace: of the edit.

    Returns:
      `reconstruction`: PSNR of `rebuilt` in dB. `round_trip`: the source branch's return to z0, as
      signal to error in dB (60 where it was not evaluated to the end). `noise`: mean square of
      `start`, 1 if it is noise. `separability`: how clearly the image falls into a part where the
      branches differ and one where they don't (see `masks.otsu`). `contrast`: the first part's
      difference over the second's, as a logarithm. `difference`: of the branches, mean over
      everything. `stability` of the masks, see `EditTrace`. `share` of the image that was free.
      `moved`: root mean square change of the latent.
    """
    axes = (1, 2, 3)
    error = jnp.mean((images - rebuilt) ** 2, axis=axes) / 4
    power = jnp.mean(z0**2, axis=axes)
    trip = jnp.full(z0.shape[0], 60.0)
    if trace.source is not None:
        returned = jnp.mean((trace.source - z0) ** 2, axis=axes)
        trip = jnp.minimum(_decibels(power, returned), 60.0)
    even = smooth(trace.change[..., None])[..., 0]
    cut, separability = otsu(even.reshape(even.shape[0], -1))
    above = even > cut[:, None, None]
    count = above.sum(axis=(1, 2))
    inside = (even * above).sum(axis=(1, 2)) / jnp.maximum(count, 1)
    outside = (even * ~above).sum(axis=(1, 2)) / jnp.maximum(even[0].size - count, 1)
    return {
        "reconstruction": _decibels(jnp.ones_like(error), error),
        "round_trip": trip,
        "noise": jnp.mean(start**2, axis=axes),
        "separability": separability,
        "contrast": jnp.log(jnp.maximum(inside, 1e-6) / jnp.maximum(outside, 1e-6)),
        "difference": trace.change.mean(axis=(1, 2)),
        "stability": trace.stability,
        "share": trace.free.mean(axis=(1, 2)),
        "moved": jnp.sqrt(jnp.mean((trace.target - z0) ** 2, axis=axes)),
    }


def _decibels(signal: Float[Array, "b"], error: Float[Array, "b"]) -> Float[Array, "b"]:
    return 10 * jnp.log10(jnp.maximum(signal, 1e-10) / jnp.maximum(error, 1e-10))
