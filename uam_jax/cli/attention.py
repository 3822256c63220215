"""`uam attention`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import SCENES, Compute, Model, Size
from uam_jax.errors import InputError


def attention(
    console: Console,
    image: Annotated[Path, Argument(metavar="IMAGE", help="Picture in any common format.")],
    prompt: Annotated[str, Option(help="Text that describes the picture.")],
    out: Annotated[Path, Option(help="File of the result, a PNG.")],
    word: Annotated[
        tuple[str, ...],
        Option(help="Word of the prompt. Can be repeated. Default: every word."),
    ] = (),
    steps: Annotated[int, Option(min=1, max=1000, help="Steps of the inversion.")] = 50,
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None,
        Option(help="Spacing of the timesteps. Default: the model's own."),
    ] = None,
    model: Model = SCENES,
    size: Size = None,
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Shows where in a picture the network attends to the words of its prompt."""
    from uam_jax.io.images import read_image, resize, working_size
    from uam_jax.io.outputs import check_places, write_files

    if not prompt.strip():
        raise InputError("--prompt is empty: describe the picture")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the result is a PNG, give a name that ends in .png")
    picture = read_image(image)
    check_places([out])
    if out.exists() and out.samefile(image):
        raise InputError(f"--out {out} is the input: choose another")
    editor = compute.load_editor(model, console)
    from uam_jax.evaluation.attention import word_maps
    from uam_jax.evaluation.plots import heat_grid

    side = editor.native_size if size is None else size
    working = working_size(picture.size, side, editor.size_multiple, image)
    pixels = resize(picture.pixels, working)
    console.stage(f"inverting {image}")
    editor.check_prompts([prompt])
    maps = word_maps(editor, pixels, prompt, word, steps=steps, spacing=spacing or "")
    write_files({out: heat_grid(pixels, maps, title=prompt)})
    return {
        "command": "attention",
        "output": out,
        "words": {
            name: {"mean": float(heat.mean()), "most": float(heat.max())}
            for name, heat in maps.items()
        },
        "worked_at": f"{working[1]}x{working[0]}",
        "evaluations": steps,
        "model": editor.name,
        "weights": editor.weights_hash,
        "dtype": editor.dtype,
    }
