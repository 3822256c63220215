"""The VAE in tiles: what the whole VAE gives, at any size, with less memory."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import VAE
from jax import Array
from random_networks import assert_close, params_of

from uam_jax import models
from uam_jax.checkpoints.load import load_checkpoint
from uam_jax.engine import programs
from uam_jax.engine.parallel import Devices
from uam_jax.models.kernels import attention

TWO = models.VAE(models.VAEConfig.from_dict(VAE))
# Two stages in tiles, one of which takes what the other gives.
THREE = models.VAE(
    models.VAEConfig.from_dict(
        VAE
        | {
            "block_out_channels": [8, 12, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
        }
    )
)


def uneven(seed: int, *shape: int) -> Array:
    """Noise whose mean and contrast rise across the picture: no two tiles have the same statistics."""
    slope = jnp.linspace(0.1, 1, shape[2])[:, None]
    noise = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(slope * noise + 2 * slope, jnp.float32)


def clouds(side: int) -> Array:
    """A picture whose spectrum falls with frequency as a photograph's does."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    noise = np.random.default_rng(0).normal(size=(3, side, side))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / np.maximum(frequency, 1 / side), (side, side))
    return jnp.asarray(np.tanh(smooth / smooth.std()).transpose(1, 2, 0)[None], jnp.float32)


@cache
def encoders(vae: models.VAE, tile: int) -> tuple[Any, Any]:
    """Jitted: the whole one and the one in tiles, of (params, images)."""
    whole = jax.jit(lambda params, x: vae.apply({"params": params}, x, method="encode"))
    return whole, jax.jit(partial(models.encode_in_tiles, vae, tile=tile))


@cache
def decoders(vae: models.VAE, tile: int) -> tuple[Any, Any]:
    """As `encoders`, of (params, latents)."""
    whole = jax.jit(lambda params, z: vae.apply({"params": params}, z, method="decode"))
    return whole, jax.jit(partial(models.decode_in_tiles, vae, tile=tile))


def decibels(actual: Array, expected: Array) -> float:
    """PSNR, of the range that is there."""
    span = expected.max() - expected.min()
    return float(20 * jnp.log10(span / jnp.sqrt(jnp.square(actual - expected).mean())))


# No multiples of the tile; narrower than a tile, and in one stage less than a window.
@pytest.mark.parametrize("sides", [(52, 76), (100, 8)])
def test_tiles_give_what_the_whole_gives(sides: tuple[int, int]) -> None:
    params = params_of(THREE)
    whole, tiled = encoders(THREE, 16)
    image = uneven(0, 2, *sides, 3)
    for ours, expected in zip(tiled(params, image), whole(params, image), strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, expected, 1e-5)
    whole, tiled = decoders(THREE, 16)
    latent = uneven(1, 2, *(side // 4 for side in sides), 4)
    ours = tiled(params, latent)
    assert ours.dtype == jnp.float32
    assert_close(ours, whole(params, latent), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "mode"), [(1, "shard_map"), (2, "shard_map"), (3, "shard_map"), (3, "pmap")]
)
def test_tiles_on_several_devices(count: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of `Editor`, with a batch that not every number of devices divides."""
    vae, params = TWO, params_of(TWO)
    images = uneven(0, 4, 50, 84, 3) / 4
    encode, decode = (
        partial(each, vae, {"vae": params}) for each in (programs.encode, programs.decode)
    )
    latents = encode(images)
    pictures = decode(latents)
    on = Devices.local(count, mode)
    monkeypatch.setattr(programs, "TILED_ABOVE", 0)
    monkeypatch.setattr(programs, "encode_in_tiles", partial(models.encode_in_tiles, tile=16))
    monkeypatch.setattr(programs, "decode_in_tiles", partial(models.decode_in_tiles, tile=16))
    for each, given, whole in ((encode, images, latents), (decode, latents, pictures)):
        each.func.clear_cache()  # the threshold is no argument
        made = each(given, on=on)
        each.func.clear_cache()
        assert made.shape == whole.shape
        assert_close(made, whole, 1e-5)


def test_half_precision() -> None:
    vae = models.VAE(TWO.config, jnp.bfloat16)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of(TWO))
    whole, tiled = decoders(vae, 16)
    latent = uneven(1, 1, 13, 16, 4)
    ours, expected = tiled(params, latent), whole(params, latent)
    assert ours.dtype == jnp.float32
    assert_close(ours, expected, 0.03)


@pytest.mark.long
def test_a_large_picture_shows_no_seam_and_takes_less_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What attention takes at most is beside the point here.
    monkeypatch.setitem(attention._MOST_LOGITS, "cpu", 2**20)
    checkpoint = load_checkpoint("scenes", dtype="float32")
    vae, params = checkpoint.vae, checkpoint.params["vae"]

    def both(pair: Any, given: Array) -> tuple[Array, Array]:
        whole, tiled = (program.lower(params, given).compile() for program in pair(vae, 128))
        memory = [c.memory_analysis().temp_size_in_bytes for c in (tiled, whole)]
        assert memory[0] < memory[1] / 3
        return tiled(params, given), whole(params, given)

    (mean, _), (expected, _) = both(encoders, clouds(512))
    assert decibels(mean, expected) > 100
    assert decibels(*both(decoders, expected)) > 100


@pytest.mark.parametrize("tile", [-2, 0, 15])
def test_a_tile_is_even(tile: int) -> None:
    with pytest.raises(ValueError, match=f"tile is {tile}"):
        models.encode_in_tiles(THREE, params_of(THREE), jnp.zeros((1, 64, 64, 3)), tile=tile)
