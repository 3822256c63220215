"""Loads one network's params from safetensors or Orbax files, and saves them; names and shapes must fit exactly.

Params follow the checkpoint's names, so the conversion is a rule and not a list: `down_blocks_0` is `down_blocks.0`; a
leaf `kernel`, `scale` or `embedding` is `weight`; only kernels change their axes. `ALIASES` lists the other layouts of
files on the hub.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from uam_jax.checkpoints.weight_files import (
    ORBAX,
    STEMS,
    Stored,
    dotted,
    listed,
    open_orbax,
    open_safetensors,
)
from uam_jax.errors import InputError
from uam_jax.types import Params


class Alias(NamedTuple):
    """A layout of files on the hub: names that match are rewritten, or dropped if there is no replacement."""

    why: str
    component: str
    pattern: str
    replacement: str | None


ALIASES = (
    Alias(
        "CLIP saved without its prefix",
        "text_encoder",
        r"^(embeddings|encoder|final_layer_norm)\.",
        r"text_model.\1.",
    ),
    Alias(
        "CLIP's position numbers, a constant that old versions saved",
        "text_encoder",
        r"^text_model\.embeddings\.position_ids$",
        None,
    ),
    Alias(
        "CLIP's projection into the space that texts and pictures share, and its temperature; Stable Diffusion uses "
        "the states before the projection",
        "text_encoder",
        r"^(text_projection(\.weight)?|logit_scale)$",
        None,
    ),
    Alias(
        "CLIP's other half, for pictures, in files of the whole model",
        "text_encoder",
        r"^(vision_model\.|visual_projection\.)",
        None,
    ),
    *(
        Alias(
            "VAE attention before diffusers 0.17",
            "vae",
            rf"(\.attentions\.\d+)\.{old}\.",
            rf"\1.{new}.",
        )
        for old, new in {
            "query": "to_q",
            "key": "to_k",
            "value": "to_v",
            "proj_attn": "to_out.0",
        }.items()
    ),
)


def load_params(
    expected: Params,
    folder: Path,
    component: str,
    *,
    dtype: DTypeLike | None,
    variants: Sequence[str],
) -> tuple[Params, str]:
    """Loads the params of one network, tensor by tensor, onto the current device.

    Args:
      expected: the network's params as `ShapeDtypeStruct`s.
      folder: a folder with an `orbax` folder or safetensors files.
      component: a key of `STEMS`.
      dtype: dtype of the params; None keeps the stored precision.
      variants: variants of the files in order of preference; "" for the plain files.

    Returns:
      The params, and a hash of their stored values, which does not depend on the layout of the files.

    Raises:
      InputError: a file is missing or cannot be read, names or shapes differ from the expected ones (all differences
        are in one message), or a value is not finite.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(expected)
    paths = [tuple(key.key for key in path) for path, _ in leaves]
    shapes = [leaf.shape for _, leaf in leaves]
    converted = (folder / ORBAX).is_dir()
    if converted:
        names = ["/".join(path) for path in paths]
        found = open_orbax(folder / ORBAX)
        wanted = dict(zip(names, shapes, strict=True))
        problems = _differences(wanted, {name: tensor.shape for name, tensor in found.items()})
    else:
        names = [torch_name(path) for path in paths]
        found, problems = _rename(open_safetensors(folder, component, variants), component)
        wanted = {n: _torch_shape(p, s) for n, p, s in zip(names, paths, shapes, strict=True)}
        problems += _differences(
            {name: _squeezed(shape) for name, shape in wanted.items()},
            {name: _squeezed(tensor.shape) for name, tensor in found.items()},
        )
    if problems:
        raise InputError(
            f"{folder}: these weights do not fit the network that config.json describes\n  "
            + "\n  ".join(problems)
        )
    _refuse_dtypes(found)

    def load(name: str, path: tuple[str, ...]) -> tuple[jax.Array, bytes]:
        value = found.pop(name).read()
        if not np.isfinite(value).all():
            raise InputError(f"{folder}: tensor {name} holds NaN or infinite values")
        if not converted:
            value = _from_torch(path, value.reshape(wanted[name]))
        digest = hashlib.sha256(f"{'/'.join(path)} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value, "<f4").data)
        # Not `jnp.asarray`, which compiles something for every shape.
        return jax.device_put(_cast(value, dtype, f"{folder}: tensor {name}")), digest.digest()

    # Moving axes and hashing take most of the time and hold no lock; each thread needs memory for a few tensors.
    with ThreadPoolExecutor(max_workers=2) as pool:
        params, digests = zip(*pool.map(load, names, paths), strict=True)
    return jax.tree_util.tree_unflatten(tree, params), hashlib.sha256(b"".join(digests)).hexdigest()


def save_safetensors(
    params: Params, folder: Path, component: str, *, variant: str = "", shard_bytes: int = 10**10
) -> None:
    """Writes one network as diffusers does: one file, or shards with at most `shard_bytes` bytes of tensors each."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(key.key for key in path)
        tensors[torch_name(names)] = _to_torch(names, np.asarray(leaf))
    shards: list[dict[str, np.ndarray]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes

    folder.mkdir(parents=True, exist_ok=True)
    stem = STEMS[component]
    dot = dotted(variant)
    if len(shards) == 1:
        save_file(tensors, folder / f"{stem}{dot}.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}{dot}-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_file = folder / f"{stem}.safetensors.index{dot}.json"
    index_file.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def save_orbax(params: Params, folder: Path) -> None:
    """Writes one network in the form that `load_params` reads without conversion."""
    import orbax.checkpoint as ocp  # takes seconds, and only converted checkpoints need it

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / ORBAX).absolute(), params)


def torch_name(path: Sequence[str]) -> str:
    """Returns the checkpoint's name of a leaf: `down_blocks_0/to_q/kernel` is `down_blocks.0.to_q.weight`."""
    modules = (
        name if name.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", name)
        for name in path[:-1]
    )
    leaf = "bias" if path[-1] == "bias" else "weight"
    return ".".join((*modules, leaf))


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _axes_to_torch(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    """Axes of a kernel in files: (in, out) becomes (out, in), and (h, w, in, out) becomes (out, in, h, w)."""
    if path[-1] != "kernel":
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def _to_torch(path: Sequence[str], value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(_axes_to_torch(path, value.ndim)))


def _from_torch(path: Sequence[str], value: np.ndarray) -> np.ndarray:
    axes = np.argsort(_axes_to_torch(path, value.ndim))
    return np.ascontiguousarray(value.transpose(axes))


def _torch_shape(path: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes_to_torch(path, len(shape)))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without 1x1: a 1x1 convolution and a linear layer are the same, and files have either."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _rename(stored: dict[str, Stored], component: str) -> tuple[dict[str, Stored], list[str]]:
    """Renames every layout in `ALIASES` to the usual one, and lists names that then stand for the same tensor."""
    aliases = [alias for alias in ALIASES if alias.component == component]
    renamed: dict[str, Stored] = {}
    twice = []
    for old, tensor in stored.items():
        name: str | None = old
        for alias in aliases:
            if name is not None and re.search(alias.pattern, name):
                name = alias.replacement and re.sub(alias.pattern, alias.replacement, name)
        if name in renamed:
            twice.append(f"{old} (as {name})")
        elif name is not None:
            renamed[name] = tensor
    return renamed, _listed_problem("stored twice", twice)


def _cast(value: np.ndarray, dtype: DTypeLike | None, name: str) -> np.ndarray:
    if dtype is None:
        dtype = np.float32 if value.dtype == np.float64 else value.dtype
    with np.errstate(over="ignore"):
        cast = value.astype(dtype, copy=False)
    if cast.dtype != value.dtype and not np.isfinite(cast).all():
        raise InputError(f"{name} overflows {cast.dtype}; use float32 or bfloat16")
    return cast


def _refuse_dtypes(tensors: Mapping[str, Stored]) -> None:
    """Refuses integers and dtypes that NumPy lacks, such as 8-bit floats and quantised weights."""
    others = [name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]
    if others:
        _, dtype, file, _ = tensors[others[0]]
        raise InputError(
            f"{file}: tensor {others[0]} holds {dtype}"
            f"{f', like {len(others) - 1} more' if others[1:] else ''}, but weights can only be read as "
            f"{', '.join(_FLOATS)}. Load the model with diffusers in torch.float16 and call "
            "save_pretrained(folder), or take a copy that is stored in one of these"
        )


def _differences(
    wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> list[str]:
    misshaped = [
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return [
        *_listed_problem("missing", [name for name in wanted if name not in found]),
        *_listed_problem("surplus", [name for name in found if name not in wanted]),
        *_listed_problem("of another shape", misshaped),
    ]


def _listed_problem(problem: str, items: Sequence[str]) -> list[str]:
    return [f"{len(items)} {problem}: {listed(items, '; ')}"] if items else []
