"""`uam plan`: its options; `plan_run` does the work."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import Precision, Settings, Variant, check_one_model, check_values
from uam_jax.cli.subcommand import LocalName
from uam_jax.errors import InputError

if TYPE_CHECKING:
    from uam_jax.evaluation.speed import Case


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Settings):
    """Options of `uam plan`."""

    target: Annotated[
        str,
        Option(
            "--for",
            metavar="v5e:2x2|v6e:2x2|h100|t4|...",
            help="The machine: a topology of TPUs, or a GPU.",
        ),
    ]
    out: Annotated[
        str,
        Option(
            help="Folder for the record, the table and the plot. Programs that are compiled there already are not "
            "compiled again."
        ),
    ] = "uam-plan"
    model: Annotated[
        LocalName | None, Option(help="As in `uam edit --model`. Default: `scenes`.")
    ] = None
    variant: Variant = None
    shape: Annotated[
        str | None,
        Option(metavar="sd15|sd21", help="A published shape, without weights or a download."),
    ] = None
    batch: Annotated[
        tuple[int, ...],
        Option(min=1, help="Pictures per device at a time. Two values show how many fit."),
    ] = (1,)
    size: Annotated[
        int | None, Option(min=1, help="Side of the pictures. Default: the model's own.")
    ] = None
    steps: Annotated[int | None, Option(min=1, help="Steps. Default: as the settings say.")] = None
    targets: Annotated[int, Option(min=1, help="Targets per picture.")] = 1
    task: Annotated[
        tuple[str, ...], Option(metavar="invert|edit|batch", help="Tasks. Default: `edit`.")
    ] = ("edit",)
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help="Number format inside the networks. `auto`: as on that machine."),
    ] = "auto"
    precision: Precision = None
    verify: Annotated[
        bool, Option("--verify", help="Compile the largest batch that should fit, too.")
    ] = False
    images: Annotated[
        int | None, Option(min=1, help="Images of a job whose chip-hours are asked for.")
    ] = None
    price: Annotated[float | None, Option(min=0, help="Price of a chip-hour.")] = None
    measured: Annotated[
        tuple[LocalName, ...],
        Option(help="Record of `uam bench` on that machine, to compare the estimate with."),
    ] = ()

    def cases(self) -> "list[Case]":
        """Lists a case for every batch.

        Raises:
          InputError: an option has an unknown value, or two options exclude each other.
        """
        from uam_jax.evaluation.speed import TASKS, Case

        check_one_model(self.model, self.variant, self.shape)
        check_values("--task", self.task, TASKS)
        if self.shape:
            from uam_jax.models.configs import PUBLISHED

            check_values("--shape", [self.shape], PUBLISHED)
        if self.price is not None and self.images is None:
            raise InputError("--price is of a job: give its --images, too")
        self.check()
        return [
            Case(
                model=None if self.shape else self.model or "scenes",
                variant=self.variant,
                shape=self.shape,
                config=self.config,
                overrides=self.overrides,
                dtype=self.dtype,
                precision=self.precision,
                size=self.size,
                batch=batch,
                steps=self.steps,
                targets=self.targets,
                tasks=tuple(dict.fromkeys(self.task)),
            )
            for batch in sorted(set(self.batch))
        ]


def plan(console: Console, options: PlanOptions) -> dict[str, Any]:
    """Estimates memory, speed and cost of edits on a TPU or GPU that isn't here.

    For TPUs every program is compiled by the TPU's own compiler (the extra `tpu-plan`); for GPUs it is a roofline.
    """
    from uam_jax.cli.plan_run import run_plan

    return run_plan(options, console)
