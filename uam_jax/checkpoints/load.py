"""Loads a model by its name, folder or hub id: networks, params, tokenizer and schedule that fit together.

A checkpoint is a folder in diffusers' layout. A converted checkpoint is the same folder, in which each network has an
`orbax` folder in place of its safetensors files. Both are loaded in the same way.
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
from uam_jax.runtime.platforms import current, usual_dtype
from uam_jax.types import Params

_SCENES = Path(__file__).parents[1] / "scenes"
EMBEDDED = {"scenes": _SCENES / "checkpoint", "scenes-128": _SCENES / "checkpoint_128"}
"""Folders of the models that are part of the package, by name."""

SETTINGS = "uam.toml"
"""Name of the file, beside `model_index.json`, with the edit settings that a model recommends."""

DTYPES = ("float32", "bfloat16", "float16")


def chosen_dtype(dtype: str) -> str:
    """Returns one of `DTYPES`; of "auto" the one that suits the platform (`platforms.usual_dtype`).

    Raises:
      InputError: it is neither.
    """
    if dtype == "auto":
        return usual_dtype(current())
    if dtype not in DTYPES:
        choices = ", ".join(("auto", *DTYPES))
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {choices}")
    return dtype


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model.

    Attributes:
      name: the name, folder or hub id that it was loaded by.
      path: the folder that it was read from.
      unet: the network that predicts the noise; its shape is `unet.config`, as with the other two.
      vae: the network between pictures and latents.
      text_encoder: the network from token ids to conditions.
      params: params of the three networks, under those three names.
      tokenizer: the tokenizer from prompts to token ids.
      schedule: the noise levels that the U-Net was trained on.
      weights_hash: 16 hex digits that depend only on the stored weights, not on their layout or `dtype`.
      settings: the edit settings beside the weights, parsed from TOML; {} if there are none.
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

    @property
    def dtype(self) -> str:
        """The number format of the computation, one of `DTYPES`."""
        return jnp.dtype(self.vae.dtype).name

    @functools.cached_property
    def model_hash(self) -> str:
        """A hash of everything that decides the model's results; see `model_hash.hash_model`."""
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
      source: the name of an embedded model, a folder in diffusers' layout or written by `convert`, or a hub id such as
        "org/model", which is taken from the hub's cache if there is no network.
      dtype: precision of params and computation: float32, bfloat16, float16, or "auto" for the one that suits the
        platform (`platforms.usual_dtype`). Norms and softmax are always float32. None keeps the stored precision of the
        params and computes in float32.
      variant: variant of the weight files, such as "fp16", which must exist. By default the plain files are preferred,
        or the fp16 files if `dtype` is a half precision.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, its kind is not supported, or one of its files is at fault.
    """
    dtype = None if dtype is None else chosen_dtype(dtype)
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
            f"{folder} is a converted model, which has no variants: leave out variant {variant!r}"
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

    Args:
      source: the model, as in `load_checkpoint`.
      destination: a new or empty local folder.
      variant: variant of the weight files, as in `load_checkpoint`.
      revision: branch, tag or commit of a hub id.

    Returns:
      The absolute path of the destination.

    Raises:
      InputError: the source cannot be loaded, or the destination is a URL, a file or a folder with files.
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
    "scheduler": (),  # any class: only the values of its file are used
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


@functools.cache  # tracing a network takes seconds, and a process may load it several times
def _expected_params(component: str, config: Any) -> Params:
    network, _ = _NETWORKS[component]
    return models.expected_params(network(config))


def _description(folder: Path) -> list[Path]:
    """The files of a checkpoint that are needed besides the weights."""
    files = [file for pattern in _DESCRIPTION for file in folder.glob(pattern)]
    return [file for file in files if file.parent == folder or file.parent.name in _CLASSES]


def _check_index(file: Path) -> None:
    """Checks that the pipeline consists of supported kinds of parts."""
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
                f"{verb} {', '.join(names)}"
                for verb, names in (("it lacks", lacking), ("it also has", further))
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
    """Checks that each network fits the output of the one before it."""
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
            f"{folder}: the text encoder has embeddings for ids below {rows}, but the tokenizer gives higher ids to "
            f"{len(beyond)} tokens, such as {beyond[0]!r}; take the text encoder that was saved with these tokens"
        )
    unused = sorted(set(range(rows)) - tokenizer.reached)
    if unused:
        warnings.warn(
            f"{folder}: {len(unused)} of the text encoder's {rows} embeddings, from id {unused[0]} on, belong to no "
            "token. If the model has learned a placeholder (textual inversion), that token is missing from the "
            'tokenizer\'s files: add it to tokenizer/added_tokens.json, for example {"<my-cat>": '
            f"{unused[0]}}}",
            UserWarning,
            stacklevel=3,
        )


def _read_settings(file: Path) -> dict[str, Any]:
    return read_toml(file) if file.is_file() else {}
