"""Files that show the results of Scenes-Bench: summary, table, plots and page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from uam_jax.evaluation.plots import bars, points
from uam_jax.jobs.ledger import Row
from uam_jax.jobs.report import render_report

_SHOWN = 4
"""Number of best, of median and of worst edits of a method on the page."""

_TABLE = {
    "success": ("success %", 100, 0),
    "background_psnr": ("background dB", 1, 2),
    "background_gap": ("below the VAE's dB", 1, 2),
    "kept_success": ("pixels kept: success %", 100, 0),
    "kept_background_psnr": ("background dB", 1, 2),
    "edit_psnr": ("edit to answer dB", 1, 2),
    "mask_iou": ("mask IoU", 1, 2),
    "reconstruction_psnr": ("reconstruction dB", 1, 2),
    "seconds": ("s", 1, 2),
}
"""Columns of the table by figure: heading, factor, decimals."""


def as_files(rows: Sequence[Row], summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Makes the summary, the table, the plots and the page of Scenes-Bench, by file name.

    Args:
      rows: the ledger's rows, one for each method and item.
      summary: `facts` of the run, `methods` as `summarise` returns them, and `confidence` as `judge` does.
    """
    methods = summary["methods"]
    nothing = (None,) * 3
    [ceiling, *_] = next(iter(methods.values()))["overall"].get("vae_background_psnr", nothing)
    title = summary["facts"]["benchmark"]
    files = {
        "summary.json": json.dumps(summary, indent=1).encode(),
        "summary.md": as_markdown(summary).encode(),
        "success-background.png": points(
            {
                name: tuple(of["overall"].get(x, nothing) for x in ("background_psnr", "success"))
                for name, of in methods.items()
            },
            title=f"{title}: mean and 95 % interval",
            x="background PSNR (dB)",
            y="share of edits that succeeded",
            line=ceiling,
            line_label="VAE ceiling",
        ),
    }
    for figure, label in (("success", "share that succeeded"), ("background_psnr", "dB")):
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        files[f"{figure.replace('_', '-')}-by-kind.png"] = bars(
            {
                kind: {
                    name: of["kinds"][kind][figure]
                    for name, of in methods.items()
                    if kind in of["kinds"] and figure in of["kinds"][kind]
                }
                for kind in kinds
            },
            title=f"{title}: {figure.replace('_', ' ')} by kind of edit",
            y=label,
        )
    files |= render_report(best_median_worst(rows), title=title, facts=summary["facts"])
    return files


def as_markdown(summary: Mapping[str, Any]) -> str:
    """Writes a summary as Markdown: the overall table, and success and background by kind, if it has them."""
    methods = summary["methods"]
    shown = {
        name: column
        for name, column in _TABLE.items()
        if any(of["overall"].get(name, [None])[0] is not None for of in methods.values())
    }
    facts = "; ".join(f"{name} {value}" for name, value in summary["facts"].items() if value)
    lines = [facts, "", "Mean [95 % interval].", ""]
    heads = ["method", *(heading for heading, _, _ in shown.values()), "evaluations"]
    lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, of in methods.items():
        cells = [_cell(of["overall"].get(key), *column[1:]) for key, column in shown.items()]
        lines.append(f"| {name} | {' | '.join(cells)} | {of['evaluations']} |")
    judged = summary.get("confidence")
    if judged and judged["auroc"] is not None:
        low, high = judged["auroc_interval"]
        wrong = f"edits that are not right ({100 * (1 - judged['right']):.0f} % of all)"
        auroc = f"{judged['auroc']:.2f} [{low:.2f}, {high:.2f}]"
        lines += ["", f"The confidence detects {wrong} with an AUROC of {auroc}."]
    kinds = list(dict.fromkeys(kind for of in methods.values() for kind in of["kinds"]))
    if kinds:
        lines += ["", "Success % / background dB by kind:", ""]
        lines += [f"| kind | {' | '.join(methods)} |", "|" + " --- |" * (len(methods) + 1)]
    for kind in kinds:
        cells = []
        for of in methods.values():
            means = of["kinds"].get(kind, {})
            pair = (means.get("success", [None])[0], means.get("background_psnr", [None])[0])
            cells.append(
                "– / –" if pair[0] is None else f"{100 * pair[0]:.0f} / "
                + ("–" if pair[1] is None else f"{pair[1]:.1f}")
            )  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(three: Sequence[float | None] | None, factor: float, decimals: int) -> str:
    if three is None or three[0] is None:
        return "–"
    mean, low, high = (f"{factor * (value or 0):.{decimals}f}" for value in three)
    return f"{mean} [{low}, {high}]"


def best_median_worst(rows: Sequence[Row]) -> list[Row]:
    """Chooses the best, median and worst rows of every method, for the page; failed rows follow.

    Rows are ranked by success, and those that are equal by their PSNR to the answer.
    """
    shown = []
    for method in dict.fromkeys(row["method"] for row in rows if row["status"] == "ok"):
        own = [row for row in rows if row["status"] == "ok" and row["method"] == method]
        own.sort(key=lambda row: (-row["figures"]["success"], -row["figures"]["answer_psnr"]))
        count, middle = min(_SHOWN, len(own)), len(own) // 2
        first = max(0, min(middle - count // 2, len(own) - count))
        picks = {
            "best": own[:count],
            "median": own[first : first + count],
            "worst": own[::-1][:count],
        }
        keys = ("success", "background_psnr", "edit_psnr", "mask_iou", "answer_psnr")
        for rank, chosen in picks.items():
            for number, row in enumerate(chosen, start=1):
                figures = {key: row["figures"].get(key) for key in keys}
                figures["confidence"] = row.get("confidence")
                # The page sorts rows by `confidence`. As a figure it is shown, and the rows keep their order.
                own_name = {
                    "id": f"{method}, {rank} {number}: {row['item']}",
                    "image": row["source"],
                }
                shown.append(
                    {**row, **own_name, "figures": figures, "confidence": None, "review": None}
                )
    return shown + [row for row in rows if row["status"] != "ok"]
