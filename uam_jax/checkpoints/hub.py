"""Finds the folder of a model by its name, path or hub id, and downloads the model if it is not there yet."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from uam_jax.checkpoints.weight_files import STEMS, weight_file
from uam_jax.errors import InputError

_SINGLE_FILE = "diffusers: StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"


def find_folder(
    source: str,
    *,
    embedded: Mapping[str, Path],
    description: Sequence[str],
    variants: Sequence[str],
    revision: str | None,
) -> Path:
    """Returns the folder of a checkpoint, and downloads the checkpoint if necessary.

    Args:
      source: a name in `embedded`, a folder or a hub id.
      embedded: folders of embedded models by name.
      description: patterns of the files that are needed besides the weights.
      variants: variants of the weight files, in order of preference; "" for the plain files.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, or it cannot be downloaded.
    """
    folder = embedded.get(source) or Path(os.path.expanduser(source))
    if source in embedded or os.path.exists(
        folder
    ):  # `os.path.exists` is False, not an error, for any text
        if revision is not None:
            raise InputError(f"a revision ({revision}) needs a hub id, and {source} is not one")
        if folder.is_file():
            raise InputError(
                f"{source} is a file; a model is a folder in diffusers' layout. Make a folder with {_SINGLE_FILE}"
            )
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"{folder} is not a model: it has no model_index.json. A model is a folder in diffusers' "
                f"layout, or one that `uam convert` has written; from a single file make a folder with {_SINGLE_FILE}"
            )
        return folder
    names = f"embedded models: {', '.join(embedded)}"
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source, re.ASCII):
        return _fetch(source, description, variants, revision)
    if re.search(r"[/\\~]|^\.", source):
        raise InputError(f"there is no folder {source} ({names}; a hub id has the form org/model)")
    raise InputError(
        f"unknown model {source!r} ({names}; or give a folder, or a hub id of the form org/model)"
    )


def _fetch(
    repo: str, description: Sequence[str], variants: Sequence[str], revision: str | None
) -> Path:
    """Downloads the needed files of a hub model, or finds them in the hub's cache."""
    import huggingface_hub  # it is slow to import, and only hub ids need it

    try:
        files = huggingface_hub.list_repo_files(repo, revision=revision)
    except Exception as error:  # the kind of error depends on the version's HTTP library
        try:
            path = huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=[*description], local_files_only=True
            )
        except Exception:
            at = f" at revision {revision}" if revision else ""
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{repo}{at}: there is no such folder, the model is not in the hub's cache, and the hub did not "
                f"send it ({reason}). Check the name and the network; a private or gated model needs `hf auth login`"
            ) from None
        return Path(path)
    if "model_index.json" not in files:
        raise InputError(
            f"{repo} is not a model in diffusers' layout: it has no model_index.json. From a single file make a "
            f"folder with {_SINGLE_FILE}"
        )
    patterns = [*description, *_weight_patterns(repo, files, variants)]
    try:
        path = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except Exception as error:  # as above
        raise InputError(
            f"{repo}: the download failed ({error}); run the command again to continue it"
        ) from None
    return Path(path)


def _weight_patterns(repo: str, files: Sequence[str], variants: Sequence[str]) -> list[str]:
    """The weight files that `load_params` will choose, for each network."""
    patterns = []
    for component, stem in STEMS.items():
        names = [f.removeprefix(f"{component}/") for f in files if f.startswith(f"{component}/")]
        chosen = weight_file(names, component, variants, f"{repo}/{component}")
        patterns.append(f"{component}/{chosen}")
        if chosen.endswith(".json"):
            variant = next((v for v in variants if v and f".{v}." in chosen), "")
            dotted = re.escape(variant and f".{variant}")
            shard = rf"{stem}({dotted}-\d+-of-\d+|-\d+-of-\d+{dotted})\.safetensors"
            patterns += [f"{component}/{name}" for name in names if re.fullmatch(shard, name)]
    return patterns
