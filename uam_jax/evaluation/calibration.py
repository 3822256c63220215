"""Confidence against the truth: which edits were right, a calibration fitted to them, and how well it tells them apart.

An edit is right if it succeeded and its background is at most `MOVED` dB below that of the VAE alone (6 dB are four
times its squared error), both in the delivered picture. A logistic regression on the standardised signals, with a ridge
that five folds choose, estimates the probability of that.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from uam_jax.errors import InputError
from uam_jax.evaluation import metrics
from uam_jax.jobs.ledger import Row
from uam_jax.method.confidence import REASONS, Calibration

MOVED = 6.0
"""dB below the VAE's background from which a background counts as changed."""

FEWEST = 5
"""Right edits, and others, without which nothing can be fitted."""

_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_SIGNALS = (*REASONS, "reconstruction", "noise", "changed", "opacity")


def are_right(rows: Sequence[Row]) -> np.ndarray:
    """Which edits did what they should and nothing else, of shape (rows,)."""

    def is_right(figures: Mapping[str, Any]) -> bool:
        success = figures.get("kept_success", figures["success"])
        background = figures.get("kept_background_psnr", figures["background_psnr"])
        moved = background is not None and figures["vae_background_psnr"] - background > MOVED
        return bool(success) and not moved

    return np.asarray([is_right(row["figures"]) for row in rows], bool)


def signals_of(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The signals of edits by name, each of shape (rows,); NaN where an edit lacks one."""
    return {
        name: np.asarray([row["figures"].get(name) for row in rows], np.float64)
        for name in _SIGNALS
    }


def fit_confidence(rows: Sequence[Row], on: str) -> dict[str, Any]:
    """Fits the table `[confidence]` of a model's settings; see `Calibration`.

    Args:
      rows: of edits that have been scored; those that failed are left out.
      on: what they are edits of, in words.

    Raises:
      InputError: too few of the edits are right, or too few are not.
    """
    rows = [row for row in rows if row["status"] == "ok"]
    signals, right = signals_of(rows), are_right(rows)
    if not FEWEST <= right.sum() <= len(rows) - FEWEST:
        raise InputError(
            f"a confidence needs {FEWEST} edits that are right and {FEWEST} that are not, and {right.sum()} of "
            f"{len(rows)} are right: calibrate on more items, or with several --methods"
        )
    # One that some edits lack would say by its absence which method they are of.
    names = [name for name in REASONS if signals[name].std() > 1e-6]
    means = {name: signals[name].mean() for name in names}
    scales = {name: signals[name].std() for name in names}
    x = np.stack([(signals[name] - means[name]) / scales[name] for name in names], axis=1)
    w = _regress(x, right, _best_ridge(x, right))

    def rounded(values: Mapping[str, float]) -> dict[str, float]:
        return {name: round(float(value), 5) for name, value in values.items()}

    typical = float(np.median(signals["noise"]))
    noise = np.abs(np.log(np.maximum(signals["noise"], 1e-6) / typical))
    return {
        "fitted": f"{len(rows)} edits of {on}",
        "bias": round(float(w[0]), 5),
        # 99 of 100 pictures of its own world count as familiar.
        "familiar": round(float(np.percentile(signals["reconstruction"], 1)), 2),
        "typical_noise": round(typical, 4),
        "noise": round(max(float(np.percentile(noise, 99)), 0.01), 4),
        "below": 0.5,
        "weights": rounded(dict(zip(names, w[1:], strict=True))),
        "means": rounded(means),
        "scales": rounded(scales),
    }


def judge(calibration: Calibration, rows: Sequence[Row]) -> dict[str, Any]:
    """How well a confidence tells the edits that are right from the others.

    Returns:
      The number of `edits` and the share that is `right`, `auroc` for detecting the others and its bootstrapped 95 %
      interval, the `brier` score, the share that is to be reviewed, and the shares of wrong and right edits there and
      among the rest. What has no meaning is None.
    """
    rows = [row for row in rows if row["status"] == "ok"]
    right, sure = are_right(rows), calibration.confidence(signals_of(rows))
    draws = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    flagged = sure < calibration.below
    both = bool(right.any() and not right.all())
    spread = [metrics.auroc(-sure[draw], ~right[draw]) for draw in draws] if both else []
    return {
        "edits": len(rows),
        "right": round(float(right.mean()), 4),
        "auroc": round(metrics.auroc(-sure, ~right), 4) if both else None,
        "auroc_interval": [round(float(end), 4) for end in np.nanpercentile(spread, [2.5, 97.5])]
        if both
        else None,
        "brier": round(float(np.mean((sure - right) ** 2)), 4),
        "review_share": round(float(flagged.mean()), 4),
        "wrong_among_review": round(float((~right[flagged]).mean()), 4) if flagged.any() else None,
        "right_among_others": round(float(right[~flagged].mean()), 4)
        if not flagged.all()
        else None,
    }


def bins_of(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Stated confidence and observed share of right edits, with interval, in five bins of equal size."""
    order = np.argsort(confidence, kind="stable")
    found = []
    for part in np.array_split(order, 5):
        mean, low, high = metrics.bootstrap(right[part].astype(np.float64))
        found.append((float(confidence[part].mean()), mean, low, high))
    return found


def with_confidence(settings: str, table: Mapping[str, Any]) -> str:
    """The text of a `uam.toml` whose table `[confidence]` is this one; all else in it stays as it was."""
    kept, own = [], False
    for line in settings.splitlines():
        if header := re.match(r"\s*\[\s*([\w-]+)", line):
            own = header[1] == "confidence"
        if not own:
            kept.append(line)
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = ["", "[confidence]"] if kept else ["[confidence]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in nested]
    for key, values in nested.items():
        lines += [
            "",
            f"[confidence.{key}]",
            *(f"{name} = {value}" for name, value in values.items()),
        ]
    return "\n".join(["\n".join(kept).rstrip(), *lines]).lstrip("\n") + "\n"


def _regress(x: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    """Bias and weights of a logistic regression with a ridge."""
    sign = np.where(right, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (w[0] + x @ w[1:])
        pull = -sign / (1 + np.exp(np.clip(margin, -30, 30)))
        gradient = np.append(pull.sum(), x.T @ pull + ridge * w[1:])
        return float(np.logaddexp(0, -margin).sum() + ridge / 2 * w[1:] @ w[1:]), gradient

    return minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x


def _best_ridge(x: np.ndarray, right: np.ndarray) -> float:
    """The ridge with the highest likelihood of what a fifth holds when the rest is fitted."""
    fold = np.random.default_rng(0).permutation(len(x)) % 5

    def held_out(ridge: float) -> float:
        loss = 0.0
        for k in range(5):
            w = _regress(x[fold != k], right[fold != k], ridge)
            logit = w[0] + x[fold == k] @ w[1:]
            loss += np.logaddexp(0, np.where(right[fold == k], -logit, logit)).sum()
        return loss

    return min(_RIDGES, key=held_out)
