"""A model's name, folder or hub id -> networks, params, tokenizer and schedule that fit together.

A checkpoint is a folder in diffusers' layout. A converted one is the same folder where each network
has an `orbax` folder in the place of its safetensors files, so both load alike.
"""

import functools
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uam_jax import models
from uam_jax.checkpoints.hub import find_folder
from uam_jax.checkpoints.model_hash import hash_model
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.checkpoints.weight_files import ORBAX
from uam_jax.checkpoints.weights import load_params, save_orbax
from uam_jax.errors import InputError
from uam_jax.files import at_home, local_path, read_json, read_toml
from uam_jax.method.schedule import Schedule
from uam_jax.types import Params

EMBEDDED = {"scenes": Path(__file__).parents[1] / "scenes" / "checkpoint"}
"""Models that ship inside the package."""

SETTINGS = "uam.toml"
"""The file, beside `model_index.json`, of the edit settings that a model recommends."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that is loaded of a model.

    Attributes:
      name: what it was asked for by.
      path: the folder that it was read from.
      unet: predicts the noise; its shape is `unet.config`, as for the other two.
      vae: picture <-> latent.
      text_encoder: token ids -> conditioning.
      params: of the three networks, under those three names.
      tokenizer: prompt -> token ids.
      schedule: the noise levels that the U-Net was trained on.
      weights_hash: 16 hex digits that depend on the stored weights alone, not on layout or `dtype`.
      settings: the edit settings shipped beside the weights, parsed from TOML; {} if none are.
    """

    name: str
    path: Path
    unet: models.UNet
    vae: models.VAE
    text_encoder: models.TextEncoder
    params: Params = field(repr=False)
    tokenizer: Tokenizer
    schedule: Schedule
    weights_hash: str
    settings: Mapping[str, Any]

    @property
    def denoiser(self) -> models.Denoiser:
        """The model family that these networks make up."""
        return models.StableDiffusion(self.unet, self.text_encoder)

    @functools.cached_property
    def model_hash(self) -> str:
        """A short name of all that decides what the model computes, see `model_hash.hash_model`."""
        return hash_model(
            weights=self.weights_hash,
            networks=(self.unet.config, self.vae.config, self.text_encoder.config),
            schedule=self.schedule,
            tokenizer=self.tokenizer.fingerprint,
        )


def load_checkpoint(
    source: str | Path,
    *,
    dtype: str | None = "float32",
    variant: str | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Loads a model.

    Args:
      source: the name of an embedded model, a folder in diffusers' layout or written by `convert`,
        or a hub id such as "org/model", taken from the hub's cache where there is no network.
      dtype: of params and computation: float32, bfloat16 or float16. Norms and softmax are float32
        in any case. None keeps the stored precision of the params and computes in float32.
      variant: the files' variant ("fp16"), which must be there. Without it the plain files come
        first, or the fp16 ones if `dtype` is a half precision.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, it is of an unsupported kind, or a file of it is at fault.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    preferred = ("", "fp16") if dtype in (None, "float32") else ("fp16", "")
    variants = preferred if variant is None else (variant,)
    folder = find_folder(
        str(source),
        embedded=EMBEDDED,
        description=_DESCRIPTION,
        variants=variants,
        revision=revision,
    )
    _check_index(folder / "model_index.json")

    configs = {
        component: config.from_dict(read_json(folder / component / "config.json"))
        for component, (_, config) in _NETWORKS.items()
    }
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    schedule = Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    _check_fit(folder, **configs, tokenizer=tokenizer)
    settings = _read_settings(folder / SETTINGS)

    if variant is not None and (folder / "unet" / ORBAX).is_dir():
        raise InputError(
            f"{folder} was converted and has no variants: leave out variant {variant!r}"
        )

    params, digest = {}, hashlib.sha256()
    for component in _NETWORKS:
        params[component], component_hash = load_params(
            _expected_params(component, configs[component]),
            folder / component,
            component,
            dtype=dtype,
            variants=variants,
        )
        digest.update(component_hash.encode())
    compute = jnp.dtype(dtype or "float32")
    return Checkpoint(
        name=str(source),
        path=folder,
        unet=models.UNet(configs["unet"], compute),
        vae=models.VAE(configs["vae"], compute),
        text_encoder=models.TextEncoder(configs["text_encoder"], compute),
        params=params,
        tokenizer=tokenizer,
        schedule=schedule,
        weights_hash=digest.hexdigest()[:16],
        settings=settings,
    )


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> Path:
    """Writes a model as an Orbax checkpoint, which `load_checkpoint` loads without conversion.

    Values keep their stored precision. The destination appears whole or not at all.

    Raises:
      InputError: the source can't be loaded, or the destination is a URL, a file or holds something.
    """
    if (local := local_path(str(destination))) is None:
        raise InputError(f"{destination} is a URL: a model is written to a local folder")
    destination = Path(at_home(local)).absolute()
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise InputError(f"{destination} exists already; give a new or an empty folder")
    checkpoint = load_checkpoint(source, dtype=None, variant=variant, revision=revision)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".uam-convert-") as scratch:
            folder = Path(scratch) / "checkpoint"
            folder.mkdir()
            for file in _description(checkpoint.path):
                target = folder / file.relative_to(checkpoint.path)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
            for component in _NETWORKS:
                save_orbax(checkpoint.params[component], folder / component)
            if destination.exists():
                destination.rmdir()
            folder.rename(destination)
    except OSError as error:
        raise InputError(f"{destination} can't be written: {error}") from None
    return destination


_NETWORKS = {
    "unet": (models.UNet, models.UNetConfig),
    "vae": (models.VAE, models.VAEConfig),
    "text_encoder": (models.TextEncoder, models.TextConfig),
}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any: DDIM is built from its values, whatever sampler the file names
}
_UNUSED = ("safety_checker", "feature_extractor")
_DESCRIPTION = (
    "model_index.json",
    "*/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    SETTINGS,
)


@functools.cache  # tracing a network takes seconds, and a process may load it more than once
def _expected_params(component: str, config: Any) -> Params:
    network, _ = _NETWORKS[component]
    return models.expected_params(network(config))


def _description(folder: Path) -> list[Path]:
    """The files of a checkpoint that aren't weights and matter here."""
    files = [file for pattern in _DESCRIPTION for file in folder.glob(pattern)]
    return [file for file in files if file.parent == folder or file.parent.name in _CLASSES]


def _check_index(file: Path) -> None:
    """Checks that the pipeline is made of the kinds of parts that are built here."""
    index = read_json(file)
    parts = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    kind = f"{file}: {index.get('_class_name', 'this pipeline')} is not supported"
    lacking = [name for name in _CLASSES if name not in parts]
    further = [name for name in parts if name not in _CLASSES and name not in _UNUSED]
    if lacking or further:
        raise InputError(
            f"{kind}: "
            + "; ".join(
                f"{what} {', '.join(names)}"
                for what, names in (("it lacks", lacking), ("it also has", further))
                if names
            )
            + ". Use a Stable Diffusion 1.x or 2.x checkpoint"
        )
    for name, classes in _CLASSES.items():
        if classes and parts[name] not in classes:
            raise InputError(f"{kind}: its {name} is a {parts[name]}, not a {' or '.join(classes)}")


def _check_fit(
    folder: Path,
    unet: models.UNetConfig,
    vae: models.VAEConfig,
    text_encoder: models.TextConfig,
    tokenizer: Tokenizer,
) -> None:
    """Checks what one network hands to the next."""
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise InputError(
            f"{folder}: the VAE's latents have {vae.latent_channels} channels, the U-Net takes "
            f"{unet.in_channels} and returns {unet.out_channels}; inpainting, depth and upscaling "
            "models are not supported"
        )
    if not vae.in_channels == vae.out_channels == 3:
        raise InputError(
            f"{folder}: the VAE takes pictures of {vae.in_channels} channels and returns {vae.out_channels}; "
            "only models of RGB pictures are supported"
        )
    if unet.context_width != text_encoder.width:
        raise InputError(
            f"{folder}: the text encoder is {text_encoder.width} wide, the U-Net expects {unet.context_width}"
        )
    if tokenizer.length > text_encoder.max_tokens:
        raise InputError(
            f"{folder}: the tokenizer gives {tokenizer.length} ids, the text encoder takes "
            f"{text_encoder.max_tokens}"
        )
    rows = text_encoder.vocab_size
    beyond = sorted(token for token, id_ in tokenizer.vocabulary.items() if id_ >= rows)
    if beyond:
        raise InputError(
            f"{folder}: the text encoder has embeddings for ids below {rows}, and the tokenizer gives "
            f"higher ones to {len(beyond)} tokens, as {beyond[0]!r}; take the text encoder that was saved "
            "with these tokens"
        )
    unused = sorted(set(range(rows)) - tokenizer.reached)
    if unused:
        warnings.warn(
            f"{folder}: {len(unused)} of the text encoder's {rows} embeddings, from id {unused[0]} on, are "
            "reached by no token. If the model was taught a placeholder (textual inversion), that token is missing "
            'from the tokenizer\'s files: add it to tokenizer/added_tokens.json, as {"<my-cat>": '
            f"{unused[0]}}}",
            UserWarning,
            stacklevel=3,
        )


def _read_settings(file: Path) -> dict[str, Any]:
    return read_toml(file) if file.is_file() else {}
