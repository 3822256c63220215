"""Scores of edits against their exact answers, and means of scores over many edits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uam_jax.evaluation import metrics
from uam_jax.evaluation.scenes_bench import Truth, judge
from uam_jax.io.compose import soft_mask
from uam_jax.jobs.ledger import Row


def score_edits(
    made: np.ndarray, free: np.ndarray, truth: Truth, *, threshold: float = 0.3
) -> dict[str, np.ndarray]:
    """Scores of edits, each of shape (b,); nan where a score has no meaning.

    Args:
      made: (b, h, w, 3) in [-1, 1], the model's own pictures: no original pixels are pasted in.
      free: (b, h, w) in [0, 1], the share of steps and channels in which a pixel was free.
      truth: of the items.
      threshold: of `compose.soft_mask`, which turns `free` into a region.
    """
    background = ~truth.region
    in_black = metrics.masked(made, background), metrics.masked(truth.sources, background)
    size = made.shape[1], made.shape[2]
    found = np.stack(
        [soft_mask(each, size, threshold=threshold, feather=0.0) > 0.5 for each in free]
    )
    overlap = metrics.overlap(found, truth.region)
    return {
        "success": judge(made, truth).astype(np.float64),
        "background_psnr": metrics.psnr(made, truth.sources, background),
        "background_ssim": metrics.ssim(made, truth.sources, background),
        "background_mse": metrics.mse(made, truth.sources, background),
        "pie_psnr": metrics.psnr(*in_black),
        "pie_ssim": metrics.ssim(*in_black),
        "pie_mse": metrics.mse(*in_black),
        "edit_psnr": metrics.psnr(made, truth.answers, truth.region),
        "answer_psnr": metrics.psnr(made, truth.answers),
        "mask_iou": np.where(truth.region.any(axis=(1, 2)), overlap, np.nan),
    }


def score_reconstructions(
    rebuilt: np.ndarray, truth: Truth, ceiling: np.ndarray
) -> dict[str, np.ndarray]:
    """Distances to the source of a method's unedited branch, and of the VAE alone, which is the ceiling."""
    return {
        "reconstruction_psnr": metrics.psnr(rebuilt, truth.sources),
        "reconstruction_ssim": metrics.ssim(rebuilt, truth.sources),
        "vae_psnr": metrics.psnr(ceiling, truth.sources),
        "vae_background_psnr": metrics.psnr(ceiling, truth.sources, ~truth.region),
    }


def score_kept(kept: np.ndarray, truth: Truth) -> dict[str, np.ndarray]:
    """Scores of edits as they are delivered, with the unedited pixels of the source."""
    return {
        "kept_success": judge(kept, truth).astype(np.float64),
        "kept_background_psnr": metrics.psnr(kept, truth.sources, ~truth.region),
        "kept_edit_psnr": metrics.psnr(kept, truth.answers, truth.region),
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means with bootstrapped 95 % intervals, per method, overall and by kind of edit."""
    methods: dict[str, Any] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return {
        name: {
            "items": len(own),
            "failed": sum(row["status"] != "ok" for row in own),
            "evaluations": next((row["evaluations"] for row in own if "evaluations" in row), None),
            "overall": _means(own),
            "kinds": {
                kind: _means([row for row in own if row["kind"] == kind])
                for kind in dict.fromkeys(row["kind"] for row in own)
            },
        }
        for name, own in methods.items()
    }


def number(value: Any) -> float | None:
    """A value for a JSON file, with six decimals; None in place of nan and infinity."""
    return round(float(value), 6) if np.isfinite(value) else None


def _means(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """The mean of every figure and the ends of its interval.

    Delivered backgrounds that are the source's to the bit are left out of their PSNR: it is infinite.
    """
    good = [row for row in rows if row["status"] == "ok"]
    figures = [row["figures"] | _gap(row["figures"]) for row in good]
    names = dict.fromkeys(name for each in figures for name in each)
    result = {}
    for name in names:
        values = np.asarray(
            [np.nan if each.get(name) is None else each[name] for each in figures], np.float64
        )
        if name == "kept_background_psnr":
            values[values >= metrics.EQUAL] = np.nan
        result[name] = [number(value) for value in metrics.bootstrap(values)]
    # The items of a chunk share one time.
    seconds = dict.fromkeys(row["seconds"] for row in good if row["seconds"] is not None)
    result["seconds"] = [number(value) for value in metrics.bootstrap(np.asarray([*seconds]))]
    return result


def _gap(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Distance of the background to the VAE's ceiling in dB."""
    ceiling, made = figures["vae_background_psnr"], figures["background_psnr"]
    return {"background_gap": None if made is None else ceiling - made}
