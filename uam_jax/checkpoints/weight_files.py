"""A network's weight files: which one to take of a folder, and its tensors, each read when it is asked for."""

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
"""Each network's folder in a checkpoint, and how its weight files' names begin."""

ORBAX = "orbax"
"""Folder beside `config.json` that holds a converted network's params."""

_SAVE_AGAIN = (
    "load the model with diffusers and call save_pretrained(folder, safe_serialization=True)"
)
FOREIGN = {
    (".bin", ".ckpt", ".pt", ".pth"): (
        "loading a pickle can run code. Convert it once, in an environment that may be harmed: "
        + _SAVE_AGAIN
    ),
    (".msgpack",): (
        "weights of old Flax classes are not read. Convert them once, with diffusers 0.35 or older and "
        "from_flax=True: " + _SAVE_AGAIN
    ),
    (".h5", ".onnx", ".onnx_data", ".pb", ".xml", ".tflite", ".gguf"): (
        "weights of this format are not read: take a copy of the model that has safetensors files, or "
        + _SAVE_AGAIN
    ),
}
"""Formats of weights that are not read, by the ends of file names, with the reason and the remedy."""


class Stored(NamedTuple):
    """A tensor in a file: its shape, what its numbers are called, the file, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[], np.ndarray]


def weight_file(names: Collection[str], component: str, variants: Sequence[str], where: Any) -> str:
    """Chooses the file to load among a folder's: of the first variant there is, whole or its index.

    Raises:
      InputError: there is none, or only of other formats; the message begins with `where`.
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
    raise InputError(f"{where}: no {tried}, nor an index of shards; there is: {there}")


def open_safetensors(folder: Path, component: str, variants: Sequence[str]) -> dict[str, Stored]:
    """Lists the tensors of a network's file or shards.

    Raises:
      InputError: a file is missing, is no whole safetensors file or no index of such.
    """
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    chosen = folder / weight_file(there, component, variants, folder)
    return _open_shards(chosen) if chosen.suffix == ".json" else dict(_tensors(chosen))


def open_orbax(folder: Path) -> dict[str, Stored]:
    """Reads the tensors of a converted network.

    Raises:
      InputError: it can't be read.
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
    """A variant as it is in file names."""
    return f".{variant}" if variant else ""


def listed(items: Collection[str], separator: str = ", ") -> str:
    """The first few names, in their order of the alphabet."""
    shown = sorted(items)[:_SHOWN]
    return separator.join([*shown, *(["..."] if len(items) > _SHOWN else [])])


_SHOWN = 12
# safetensors' names of what NumPy has a name for.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _open_shards(index: Path) -> dict[str, Stored]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: not an index of shards (it has no weight_map)")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        # An index is data from elsewhere: it may name files beside itself only.
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
        raise InputError(f"{index}: {len(wrong)} not in the shard that it says: {listed(wrong)}")
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
