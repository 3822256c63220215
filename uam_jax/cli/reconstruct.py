"""`uam reconstruct`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute, Images, Model, Overwrite, ResultPlace, Size
from uam_jax.cli.pictures import process_pictures

if TYPE_CHECKING:
    from uam_jax.io.outputs import Files
    from uam_jax.jobs.single import PictureFiles, Rows


def reconstruct(
    console: Console,
    images: Images,
    out: ResultPlace,
    prompt: Annotated[str, Option(help="Text that describes the picture to the network.")] = "",
    uniformity: Annotated[
        float,
        Option(min=0, max=1, help="Cross-attention maps: 0 for the text's, 1 for uniform ones."),
    ] = 1.0,
    guidance: Annotated[float, Option(min=0, help="Guidance scale; 1 means no guidance.")] = 1.0,
    steps: Annotated[int, Option(min=1, max=1000, help="Steps in each direction.")] = 50,
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None,
        Option(help="Spacing of the timesteps. Default: the model's own."),
    ] = None,
    model: Model = SCENES,
    size: Size = None,
    overwrite: Overwrite = False,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Inverts pictures to noise and back, which shows the loss on the way."""
    from uam_jax.jobs.single import plan_files, reconstruct_file

    plans = plan_files(images, out, overwrite=overwrite)
    editor = compute.load_editor(model, console)

    def work(plan: "PictureFiles") -> "tuple[Files, Rows]":
        return reconstruct_file(
            editor, plan, prompt=prompt, uniformity=uniformity, guidance=guidance, steps=steps,
            spacing=spacing or "", size=size,
        )  # fmt: skip

    return {"command": "reconstruct", **process_pictures(console, editor, plans, work)}
