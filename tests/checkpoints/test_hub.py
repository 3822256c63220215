"""Models of the hub, from its cache and downloaded; a folder stands for the hub."""

import json
import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from checkpoint_files import assert_same, edit_json, into_hub_cache

from uam_jax.checkpoints.load import convert, load_checkpoint
from uam_jax.checkpoints.weights import save_safetensors
from uam_jax.errors import InputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_works_offline_from_the_cache(folder: Path, cache: Path) -> None:
    snapshot = into_hub_cache(folder, cache, "org/tiny")
    checkpoint = load_checkpoint("org/tiny")
    assert checkpoint.path == snapshot
    assert checkpoint.name == "org/tiny"
    assert_same(checkpoint, load_checkpoint(folder))
    assert_same(load_checkpoint("org/tiny", revision=snapshot.name), checkpoint)


def test_a_cached_hub_model_is_converted_into_files(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    into_hub_cache(folder, cache, "org/tiny")
    destination = convert("org/tiny", tmp_path / "converted")
    assert not any(path.is_symlink() for path in destination.rglob("*"))
    assert_same(load_checkpoint(destination), load_checkpoint(folder))


@pytest.mark.parametrize("options", [{}, {"revision": "fp16"}])
def test_a_hub_id_that_is_nowhere_says_so(cache: Path, options: dict) -> None:
    with pytest.raises(InputError, match=r"^org/absent.*not in the hub's cache, and the hub"):
        load_checkpoint("org/absent", **options)


@pytest.mark.parametrize("source", ["org/-x--y", "org/a..b", "org/name.git"])
def test_an_impossible_hub_id_says_so(cache: Path, source: str) -> None:
    with pytest.raises(InputError, match=source):
        load_checkpoint(source)


class Hub:
    """A stand-in for the hub: copies files from a folder and records their names."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache = folder, cache
        self.fetched: list[str] = []

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return [file.relative_to(self.folder).as_posix() for file in files]

    def snapshot_download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        for name in self.list_repo_files(repo, revision=revision):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.fetched.append(name)
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.folder / name, self.cache / name)
        return str(self.cache)


def add_half(folder: Path, rename: Callable[[str], str] = str) -> None:
    """Adds sharded fp16 files of the U-Net beside the plain one."""
    params = load_checkpoint(folder).params["unet"]
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
    save_safetensors(half, folder / "unet", "unet", variant="fp16", shard_bytes=5000)
    for file in folder.glob("unet/*.fp16-*"):
        file.rename(file.with_name(rename(file.name)))
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={tensor: rename(file) for tensor, file in weight_map.items()})


def suffixed(name: str) -> str:
    """The older spelling: the variant after the shard's number."""
    return name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")


@pytest.mark.parametrize("rename", [str, suffixed])
@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}])
def test_only_what_is_needed_is_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename, options: dict
) -> None:
    add_half(folder, rename)
    for name in ("unet/model.bin", "safety_checker/model.safetensors", "v1-5.ckpt", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    hub = Hub(folder, tmp_path / "download")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    assert_same(load_checkpoint("org/tiny", **options), load_checkpoint(folder, **options))
    weights = {name for name in hub.fetched if "safetensors" in name and name.startswith("unet/")}
    assert weights
    assert all(("fp16" in name) == bool(options) for name in weights)
    assert not [name for name in hub.fetched if name.endswith((".bin", ".ckpt", ".md"))]
    assert "safety_checker/model.safetensors" not in hub.fetched


def test_a_hub_model_of_pickles_is_refused_before_anything_is_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    hub = Hub(folder, tmp_path / "download")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    with pytest.raises(InputError, match=r"org/tiny/vae: only diffusion_pytorch_model\.bin"):
        load_checkpoint("org/tiny")
    assert not hub.fetched


def test_a_hub_repository_of_something_else_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "v1-5.safetensors").touch()
    hub = Hub(tmp_path / "repo", tmp_path / "download")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    with pytest.raises(InputError, match=r"^org/one is not a model.*from_single_file"):
        load_checkpoint("org/one")


def test_a_download_that_breaks_off_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(repo: str, **options: object) -> str:
        raise ConnectionError("reset by peer")

    hub = Hub(folder, tmp_path / "download")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(InputError, match=r"org/tiny: the download failed \(reset by peer\)"):
        load_checkpoint("org/tiny")
