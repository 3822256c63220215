"""Safetensors or Orbax files <-> one network's params, names and shapes compared exactly.

Params follow the checkpoint's names, so the conversion is a rule and not a list: `down_blocks_0` is
`down_blocks.0`, a leaf `kernel`, `scale` or `embedding` is `weight`, only kernels change their axes.
What the hub holds beside that one layout is written down in `ALIASES`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from uam_jax.errors import InputError
from uam_jax.files import read_json
from uam_jax.types import Params

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Each network's folder in a checkpoint, and how its weight files' names begin."""

ORBAX = "orbax"
"""Folder beside `config.json` that holds a converted network's params."""


class Alias(NamedTuple):
    """A layout found on the hub: names that match are rewritten, or dropped for want of a new one."""

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


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load_params(
    expected: Params,
    folder: Path,
    component: str,
    *,
    dtype: DTypeLike | None,
    variants: Sequence[str],
) -> tuple[Params, str]:
    """Loads one network, tensor by tensor, onto the current device.

    Args:
      expected: the network's params as `ShapeDtypeStruct`s.
      folder: holds an `orbax` folder or safetensors files.
      component: a key of `STEMS`.
      dtype: what the params are cast to; None keeps the stored precision.
      variants: names of the files' variants in order of preference, "" for the plain one.

    Returns:
      The params and a hash of their stored values, which doesn't depend on how they were stored.

    Raises:
      InputError: a file is missing or unreadable, the names or shapes differ from what is expected
        (all differences in one message), or a value isn't finite.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(expected)
    paths = [tuple(key.key for key in path) for path, _ in leaves]
    shapes = [leaf.shape for _, leaf in leaves]
    converted = (folder / ORBAX).is_dir()
    if converted:
        names = ["/".join(path) for path in paths]
        found = _open_orbax(folder / ORBAX)
        wanted = dict(zip(names, shapes, strict=True))
        problems = _differences(wanted, {name: tensor.shape for name, tensor in found.items()})
    else:
        names = [torch_name(path) for path in paths]
        found, problems = _rename(_open_safetensors(folder, component, variants), component)
        wanted = {n: _torch_shape(p, s) for n, p, s in zip(names, paths, shapes, strict=True)}
        problems += _differences(
            {name: _squeezed(shape) for name, shape in wanted.items()},
            {name: _squeezed(tensor.shape) for name, tensor in found.items()},
        )
    if problems:
        raise InputError(
            f"{folder}: these weights don't fit the network that config.json describes\n  "
            + "\n  ".join(problems)
        )

    def load(name: str, path: tuple[str, ...]) -> tuple[jax.Array, bytes]:
        value = found.pop(name).read()
        if value.dtype not in _FLOATS:
            raise InputError(
                f"{folder}: tensor {name} holds {value.dtype}, not floating-point numbers"
            )
        if not np.isfinite(value).all():
            raise InputError(f"{folder}: tensor {name} holds NaN or infinite values")
        if not converted:
            value = _from_torch(path, value.reshape(wanted[name]))
        digest = hashlib.sha256(f"{'/'.join(path)} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value, "<f4").data)
        # Not `jnp.asarray`, which compiles something for every shape.
        return jax.device_put(_cast(value, dtype, f"{folder}: tensor {name}")), digest.digest()

    # Moving axes and hashing take the time, and hold no lock; each thread needs a few tensors' room.
    with ThreadPoolExecutor(max_workers=2) as pool:
        params, digests = zip(*pool.map(load, names, paths), strict=True)
    return jax.tree_util.tree_unflatten(tree, params), hashlib.sha256(b"".join(digests)).hexdigest()


def save_safetensors(
    params: Params, folder: Path, component: str, *, variant: str = "", shard_bytes: int = 10**10
) -> None:
    """Writes one network as diffusers does: one file, or shards of at most so many bytes of tensors."""
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
    dotted = _dotted(variant)
    if len(shards) == 1:
        save_file(tensors, folder / f"{stem}{dotted}.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}{dotted}-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_file = folder / f"{stem}.safetensors.index{dotted}.json"
    index_file.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def save_orbax(params: Params, folder: Path) -> None:
    """Writes one network in the form that `load_params` reads without conversion."""
    import orbax.checkpoint as ocp  # takes seconds, and only converted checkpoints need it

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / ORBAX).absolute(), params)


def weight_file(names: Collection[str], component: str, variants: Sequence[str], where: Any) -> str:
    """Chooses the file to load among a folder's: of the first variant there is, whole or its index.

    Raises:
      InputError: there is none, or only pickles; the message begins with `where`.
    """
    stem = STEMS[component]
    for dotted in map(_dotted, variants):
        for name in (
            f"{stem}{dotted}.safetensors",
            f"{stem}.safetensors.index{dotted}.json",
            f"{stem}{dotted}.safetensors.index.json",
        ):
            if name in names:
                return name
    pickles = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth")))
    if pickles:
        raise InputError(
            f"{where}: only {', '.join(pickles)}, and loading a pickle can run code. Convert it once, in an "
            "environment that may be harmed: load the model with diffusers and call "
            "save_pretrained(folder, safe_serialization=True)"
        )
    tried = " or ".join(f"{stem}{_dotted(variant)}.safetensors" for variant in variants)
    there = ", ".join(sorted(names)) or "nothing"
    raise InputError(f"{where}: no {tried}, nor an index of shards; there is: {there}")


def torch_name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf: `down_blocks_0/to_q/kernel` is `down_blocks.0.to_q.weight`."""
    modules = (
        name if name.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", name)
        for name in path[:-1]
    )
    leaf = "bias" if path[-1] == "bias" else "weight"
    return ".".join((*modules, leaf))


_FLOATS = (np.float16, jnp.bfloat16, np.float32, np.float64)
_SHOWN = 12


def _dotted(variant: str) -> str:
    return f".{variant}" if variant else ""


def _axes_to_torch(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    """(in, out) -> (out, in), and height, width, in, out -> out, in, height, width, for kernels."""
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
    """A 1x1 convolution and a linear layer are one computation, saved either way."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _rename(stored: dict[str, _Stored], component: str) -> tuple[dict[str, _Stored], list[str]]:
    """Brings every layout of `ALIASES` to one; says which names then stand for the same tensor."""
    aliases = [alias for alias in ALIASES if alias.component == component]
    renamed: dict[str, _Stored] = {}
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
    return renamed, _listed("stored twice", twice)


def _cast(value: np.ndarray, dtype: DTypeLike | None, what: str) -> np.ndarray:
    if dtype is None:
        dtype = np.float32 if value.dtype == np.float64 else value.dtype
    with np.errstate(over="ignore"):
        cast = value.astype(dtype, copy=False)
    if cast.dtype != value.dtype and not np.isfinite(cast).all():
        raise InputError(f"{what} overflows {cast.dtype}; use float32 or bfloat16")
    return cast


def _differences(
    wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> list[str]:
    misshaped = [
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return [
        *_listed("missing", [name for name in wanted if name not in found]),
        *_listed("surplus", [name for name in found if name not in wanted]),
        *_listed("of another shape", misshaped),
    ]


def _listed(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = ["..."] if len(items) > _SHOWN else []
    return [f"{len(items)} {what}: {'; '.join([*items[:_SHOWN], *more])}"]


def _open_safetensors(folder: Path, component: str, variants: Sequence[str]) -> dict[str, _Stored]:
    """Lists the tensors of a network's file or shards; each is read only when asked for."""
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    chosen = folder / weight_file(there, component, variants, folder)
    return _open_shards(chosen) if chosen.suffix == ".json" else dict(_tensors(chosen))


def _open_shards(index: Path) -> dict[str, _Stored]:
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
        raise InputError(f"{index}: {_listed('not in the shard that it says', wrong)[0]}")
    return found


def _tensors(file: Path) -> Iterator[tuple[str, _Stored]]:
    try:
        handle = safetensors.safe_open(file, "numpy")
        for name in handle.keys():  # noqa: SIM118 (the handle isn't a mapping)
            shape = tuple(handle.get_slice(name).get_shape())
            yield name, _Stored(shape, lambda name=name: handle.get_tensor(name))
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{file}: not a whole safetensors file ({error}); download it again "
            "(a file of a few hundred bytes is a pointer that git-lfs left)"
        ) from None


def _open_orbax(folder: Path) -> dict[str, _Stored]:
    import orbax.checkpoint as ocp  # as in save_orbax

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
        "/".join(key.key for key in path): _Stored(leaf.shape, lambda leaf=leaf: leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }
