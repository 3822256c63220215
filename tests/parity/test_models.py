"""Every block and every network against diffusers and transformers, from files that those wrote."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uam_jax.checkpoints.load import EMBEDDED
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.models import attention, clip_text, layers, unet, vae
from uam_jax.models.rules import RuleCalls
from uam_jax.types import Params, Rules, Site, plain_attention

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from parity import torch_networks as both  # noqa: E402 (needs the three)

pytestmark = pytest.mark.parity

F32 = jnp.float32
SD1 = {
    "attention_head_dim": 8,
    "block_out_channels": [16, 32, 32],
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 16,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
CLIP = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 100,
}
NETWORKS = {
    "sd1": ("unet", SD1),
    "sd2": ("unet", SD1 | {"attention_head_dim": [2, 4, 8], "use_linear_projection": True}),
    "vae": ("vae", VAE),
    "quick_gelu": ("text_encoder", CLIP),
    "gelu": ("text_encoder", CLIP | {"hidden_act": "gelu"}),
}


def drawn(component: str, config: Any) -> both.Arrays:
    """A batch of two that tells axes and rows apart: sides differ, timesteps differ."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if component == "unet":
        return {
            "latent": normal(2, 16, 8, config.in_channels),
            "timestep": np.array([7, 901]),
            "states": normal(2, 77, config.context_width),
        }
    if component == "vae":
        sides = 8 * config.factor, 4 * config.factor
        image = np.tanh(normal(2, *sides, config.in_channels))
        return {"image": image, "latent": normal(2, 8, 4, config.latent_channels)}
    return {"ids": rng.integers(config.vocab_size, size=(2, config.max_tokens))}


@dataclass
class Twins:
    """A network here and there, and what went through its submodules there."""

    module: Any
    params: Params
    inputs: both.Arrays
    outputs: both.Arrays
    calls: dict[str, tuple[np.ndarray, np.ndarray]]
    """Each submodule's first input and its output, by PyTorch's name."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twins]:
    made: dict[str, Twins] = {}

    def get(name: str) -> Twins:
        if name not in made:
            component, config = NETWORKS[name]
            network = both.random_network(component, config)
            folder = tmp_path_factory.mktemp(name)
            network.save_pretrained(folder)
            made[name] = pair(component, network, folder)
        return made[name]

    return get


def pair(component: str, network: Any, folder: Path) -> Twins:
    module, params = both.load(component, folder)
    inputs, calls = drawn(component, module.config), {}

    def keep(name: str) -> Callable:
        def hook(_: object, given: tuple, keywords: dict, output: Any) -> None:
            first = (*given, *keywords.values())[0]
            output = output if isinstance(output, torch.Tensor) else output[0]
            calls[name] = both.as_numpy(first), both.as_numpy(output)

        return hook

    for name, submodule in network.named_modules():
        if name:
            name = name if name.startswith("text_model.") else f"{CLIP_PREFIX[component]}{name}"
            submodule.register_forward_hook(keep(name), with_kwargs=True)
    return Twins(module, params, inputs, both.their_outputs(component, network, inputs), calls)


# Since version 5 transformers leaves it out of the module's names, though not of the files'.
CLIP_PREFIX = {"unet": "", "vae": "", "text_encoder": "text_model."}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, twins: Callable[[str], Twins]) -> None:
    component, _ = NETWORKS[name]
    both_ways = twins(name)
    ours = both.our_outputs(component, both_ways.module, both_ways.params, both_ways.inputs)
    errors = both.relative_errors(ours, both_ways.outputs)
    print(name, errors)
    assert max(errors.values()) <= both.PER_MODEL


def plain(block: Any, x: jax.Array, _: Any) -> jax.Array:
    return block(x)


def timed(block: Any, x: jax.Array, more: Any) -> jax.Array:
    return block(x, more["time"])


def site(kind: Any, width: int) -> Site:
    return Site(0, 0, kind, width, "middle")


OWN, CROSS = partial(site, "own"), partial(site, "cross")


def attending(block: Any, x: jax.Array, more: Any) -> jax.Array:
    width = x.shape[-1]
    return block(x, RuleCalls(Rules(), more["states"], [OWN(width), CROSS(width)]))


def own(block: Any, x: jax.Array, _: Any) -> jax.Array:
    return plain_attention(block, x, x)


def cross(block: Any, x: jax.Array, more: Any) -> jax.Array:
    return plain_attention(block, x, more["states"])


T = "down_blocks.1.attentions.0"
B = f"{T}.transformer_blocks.0"
L = "text_model.encoder.layers.1"
BLOCKS = [
    ("sd1", "time_embedding", unet.TimeEmbedding(64, F32), plain),
    ("sd1", "down_blocks.0.resnets.0", layers.ResnetBlock(16, 4, 1e-5, F32), timed),
    ("sd1", "down_blocks.1.resnets.0", layers.ResnetBlock(32, 4, 1e-5, F32), timed),
    ("sd1", "down_blocks.0.downsamplers.0", layers.Downsample(1, F32), plain),
    ("sd1", "up_blocks.0.upsamplers.0", layers.Upsample(F32), plain),
    ("sd1", T, unet.Transformer(8, 4, F32), attending),
    ("sd2", T, unet.Transformer(4, 4, F32), attending),
    ("sd1", f"{T}.norm", layers.GroupNorm(4, 1e-6), plain),
    ("sd1", B, unet.TransformerBlock(8, F32), attending),
    ("sd1", f"{B}.norm1", layers.LayerNorm(), plain),
    ("sd1", f"{B}.attn1", attention.Attention(*OWN(32), 8, F32), own),
    ("sd1", f"{B}.attn2", attention.Attention(*CROSS(32), 8, F32), cross),
    ("sd1", f"{B}.ff", unet.FeedForward(F32), plain),
    ("vae", "encoder.down_blocks.1", vae._Level(16, 2, 4, F32, "down"), plain),
    ("vae", "encoder.down_blocks.1.resnets.0", layers.ResnetBlock(16, 4, 1e-6, F32), plain),
    ("vae", "encoder.down_blocks.0.downsamplers.0", vae.Downsample(((0, 1),) * 2, F32), plain),
    (
        "vae",
        "encoder.mid_block.attentions.0",
        vae._PixelAttention(*OWN(16), 1, F32, qkv_bias=True, groups=4),
        plain,
    ),
    ("vae", "decoder.mid_block", vae._Middle(16, 4, F32), plain),
    ("vae", "decoder.up_blocks.2", vae._Level(8, 3, 4, F32, None), plain),
    *(
        (name, f"{L}{part}", block(clip_text.TextConfig.from_dict(NETWORKS[name][1]), F32), plain)
        for name in ("quick_gelu", "gelu")
        for part, block in (("", clip_text._Layer), (".mlp", clip_text._MLP))
    ),
    ("gelu", f"{L}.self_attn", clip_text._CausalSelfAttention(4, F32), plain),
]


@pytest.mark.parametrize(
    ("name", "path", "block", "call"), BLOCKS, ids=[f"{name}-{path}" for name, path, *_ in BLOCKS]
)
def test_block(
    name: str, path: str, block: Any, call: Callable, twins: Callable[[str], Twins]
) -> None:
    network = twins(name)
    given, expected = network.calls[path]
    more = {"states": network.inputs.get("states")}
    if "time_embedding" in network.calls:
        more["time"] = network.calls["time_embedding"][1]

    @jax.jit
    def compute(params: Params, x: jax.Array, more: dict) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return call(block.bind({"params": params}), x, more)

    error = both.relative_error(compute(subtree(network.params, path), given, more), expected)
    print(name, path, error)
    assert error <= both.PER_BLOCK


def subtree(params: Params, path: str) -> Params:
    """The params of the submodule that PyTorch calls `path`."""
    parts = path.split(".")
    while parts:
        length = next(n for n in (2, 1) if "_".join(parts[:n]) in params)
        params, parts = params["_".join(parts[:length])], parts[length:]
    return params


def test_time_features(twins: Callable[[str], Twins]) -> None:
    timestep, expected = twins("sd1").calls["time_proj"]
    features = unet.sinusoidal(jnp.asarray(timestep), 16, flip_sin_to_cos=True, freq_shift=0.0)
    # Float32 angles of up to 1000 are exact to 6e-5, in PyTorch too.
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("component", both.THEIRS)
def test_embedded_model_loads_there_and_agrees(component: str) -> None:
    folder = EMBEDDED["scenes"] / component
    # transformers would compute in the precision of the file.
    network = both.THEIRS[component].from_pretrained(folder).float().eval()
    module, params = both.load(component, folder)
    inputs = drawn(component, module.config)
    theirs = both.their_outputs(component, network, inputs)
    errors = both.relative_errors(both.our_outputs(component, module, params, inputs), theirs)
    print("scenes", component, errors)
    assert max(errors.values()) <= both.PER_MODEL


@pytest.mark.parametrize("prompt", ["", "a small red ball on a blue cube", "Zebra, übrigens!"])
def test_embedded_tokenizer_loads_there_and_agrees(prompt: str) -> None:
    folder = EMBEDDED["scenes"] / "tokenizer"
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = theirs(prompt, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(Tokenizer.from_folder(folder).encode([prompt]), [ids])
