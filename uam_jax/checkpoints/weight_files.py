"""Chooses a network's weight files in a folder, and opens their tensors, each of which is read on demand."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from uam_jax.errors import InputError
from uam_jax.files import read_json

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The folder of each network in a checkpoint, and the beginning of its weight files' names."""

ORBAX = "orbax"
"""Folder beside `config.json` that holds a converted network's params."""

_SAVE_AGAIN = (
    "load the model with diffusers and call save_pretrained(folder, safe_serialization=True)"
)
FOREIGN = {
    (".bin", ".ckpt", ".pt", ".pth"): (
        "loading a pickle can run code. Convert it once, in an isolated environment: " + _SAVE_AGAIN
    ),
    (".msgpack",): (
        "weights of diffusers' old Flax classes cannot be read. Convert them once, with diffusers 0.35 or older and "
        "from_flax=True: " + _SAVE_AGAIN
    ),
    (".h5", ".onnx", ".onnx_data", ".pb", ".xml", ".tflite", ".gguf"): (
        "weights of this format cannot be read: take a copy of the model that has safetensors files, or "
        + _SAVE_AGAIN
    ),
}
"""Formats of weights that cannot be read, by the suffixes of their files, with the reason and the remedy."""


class Stored(NamedTuple):
    """A tensor in a file: its shape, the name of its dtype, the file, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[], np.ndarray]


def weight_file(names: Collection[str], component: str, variants: Sequence[str], where: Any) -> str:
    """Chooses the file to load: that of the first variant that exists, either the whole file or the index of shards.

    Args:
      names: the names of the files in the folder.
      component: a key of `STEMS`.
      variants: variants in order of preference; "" for the plain files.
      where: the folder, with which the message of an error begins.

    Raises:
      InputError: there is no such file, or only files of other formats.
    """
    stem = STEMS[component]
    for dot in map(dotted, variants):
        for name in (
            f"{stem}{dot}.safetensors",
            f"{stem}.safetensors.index{dot}.json",
            f"{stem}{dot}.safetensors.index.json",
        ):
            if name in names:
                return name
    if not any(".safetensors" in name for name in names):
        for ends, reason in FOREIGN.items():
            if found := [name for name in names if name.endswith(ends)]:
                raise InputError(f"{where}: only {listed(found)}, and {reason}")
    tried = " or ".join(f"{stem}{dotted(variant)}.safetensors" for variant in variants)
    there = listed(names) if names else "nothing"
    raise InputError(
        f"{where}: there is no {tried} and no index of shards; the folder has: {there}"
    )


def open_safetensors(folder: Path, component: str, variants: Sequence[str]) -> dict[str, Stored]:
    """Opens the tensors of a network's file or shards, by name.

    Raises:
      InputError: a file is missing, is not a whole safetensors file, or is not an index of such files.
    """
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    chosen = folder / weight_file(there, component, variants, folder)
    return _open_shards(chosen) if chosen.suffix == ".json" else dict(_tensors(chosen))


def open_orbax(folder: Path) -> dict[str, Stored]:
    """Reads the tensors of a converted network, by name.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp  # takes seconds, and only converted checkpoints need it

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder.absolute()).item_metadata.tree
            as_numpy: Any = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(folder.absolute(), restore_args=as_numpy)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise InputError(
            f"{folder}: not a readable Orbax checkpoint ({type(error).__name__}); "
            "run `uam convert` again"
        ) from None
    return {
        "/".join(key.key for key in path): Stored(
            leaf.shape, str(leaf.dtype), folder, lambda leaf=leaf: leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def dotted(variant: str) -> str:
    """Returns a variant as file names have it: "fp16" becomes ".fp16"."""
    return f".{variant}" if variant else ""


def listed(items: Collection[str], separator: str = ", ") -> str:
    """Joins the first few names in alphabetical order."""
    shown = sorted(items)[:_SHOWN]
    return separator.join([*shown, *(["..."] if len(items) > _SHOWN else [])])


_SHOWN = 12
# NumPy's names of the dtypes in safetensors files.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _open_shards(index: Path) -> dict[str, Stored]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: not an index of shards (it has no weight_map)")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        # An index comes from another source, so it may only name files beside itself.
        if not re.fullmatch(r"[^/\\]+\.safetensors", shard):
            raise InputError(f"{index}: {shard!r} is not the name of a safetensors file beside it")
        if not (index.parent / shard).is_file():
            raise InputError(f"{index}: its shard {shard} is missing; download it again")
    found, places = {}, {}
    for shard in shards:
        for name, tensor in _tensors(index.parent / shard):
            found[name], places[name] = tensor, shard
    wrong = [name for name in {**weight_map, **places} if weight_map.get(name) != places.get(name)]
    if wrong:
        raise InputError(
            f"{index}: {len(wrong)} tensors are not in the shard that the index names: {listed(wrong)}"
        )
    return found


def _tensors(file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        handle = safetensors.safe_open(file, "numpy")
        for name in handle.keys():  # noqa: SIM118 (the handle isn't a mapping)
            about = handle.get_slice(name)
            dtype = _DTYPES.get(about.get_dtype(), about.get_dtype())
            read = lambda name=name: handle.get_tensor(name)  # noqa: E731
            yield name, Stored(tuple(about.get_shape()), dtype, file, read)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{file}: not a whole safetensors file ({error}); download it again "
            "(a file of a few hundred bytes is a pointer that git-lfs left)"
        ) from None
