"""`uam edit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import (
    SCENES,
    Compute,
    Focused,
    Images,
    Model,
    Overwrite,
    ResultPlace,
    Settings,
    Size,
    WordOptions,
)
from uam_jax.cli.pictures import process_pictures
from uam_jax.errors import InputError

if TYPE_CHECKING:
    from uam_jax.io.outputs import Files
    from uam_jax.jobs.single import PictureFiles, Rows


def edit(
    console: Console,
    images: Images,
    target: Annotated[
        tuple[str, ...],
        Option(help="Text that describes the result. Repeat it for several results."),
    ],
    out: ResultPlace,
    source: Annotated[str | None, Option(help="Text that describes the picture.")] = None,
    negative: Annotated[
        str,
        Option(
            help="Text that describes what the result must not show, in place of the null prompt."
        ),
    ] = "",
    model: Model = SCENES,
    *,
    word_options: WordOptions,
    settings: Settings,
    mask: Annotated[
        Path | None,
        Option(
            help="Mask picture of the same size: only its white part may change (or its one colour, class or hole)."
        ),
    ] = None,
    save_mask: Annotated[
        bool, Option("--save-mask", help="Write the mask of the edit beside each result.")
    ] = False,
    report: Annotated[
        bool, Option("--report", help="Write index.html in --out, a page that shows all results.")
    ] = False,
    size: Size = None,
    focus: Focused = "auto",
    overwrite: Overwrite = False,
    compute: Compute,
) -> dict[str, Any]:
    """Edits pictures by text."""
    from uam_jax.io.focus import check_focus
    from uam_jax.jobs.single import edit_file, plan_files, report_page
    from uam_jax.method.edits import Edit

    if not all(text.strip() for text in target):
        raise InputError("--target is empty: describe the result")
    words = word_options.words
    check_focus(focus, masked=mask is not None)
    plans = plan_files(
        images, out, targets=len(target), mask=mask, save_mask=save_mask, report=report,
        overwrite=overwrite,
    )  # fmt: skip
    known = settings.check()  # after the paths: the settings know the controls, which take JAX
    if source is None:
        from uam_jax.engine.prompts import source_prompts

        source_prompts(None, known)  # is one needed? It says so before a model is loaded.
    editor = compute.load_editor(model, console)
    config = settings.of(editor)
    fingerprint = config.fingerprint()  # of settings that have none, it says so before the work
    evaluations = editor.evaluations(
        config, targets=len(target), user_mask=mask is not None, source=source or ""
    )
    console.say(f"{evaluations} network evaluations per picture")

    def work(plan: "PictureFiles") -> "tuple[Files, Rows]":
        edits = [Edit(text, words=words, negative=negative) for text in target]
        return edit_file(
            editor, plan, edits=edits, source=source, config=config, size=size, focus=focus
        )

    def page(rows: "Rows") -> "Files":
        model = {"model": editor.name, "weights": editor.weights_hash, "dtype": editor.dtype}
        facts = {**model, "focus": focus, "results": len(rows)}
        return report_page(Path(out), plans, rows, facts) if report else {}

    return {
        "command": "edit",
        **process_pictures(console, editor, plans, work, page),
        "evaluations": evaluations * len(plans),
        "config": fingerprint,
    }
