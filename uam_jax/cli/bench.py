"""`uam bench` and `uam bench compare`: their options; `bench_run` and `bench_compare` do the work."""

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from uam_jax.cli.console import Console
from uam_jax.cli.options import Precision, Settings, Variant, check_one_model, check_values
from uam_jax.cli.subcommand import LocalName
from uam_jax.runtime.backend import Device

if TYPE_CHECKING:
    from uam_jax.evaluation.speed import Case

_VARIED = ("device", "dtype", "attention", "devices", "size", "steps", "targets", "batch")
"""Options that take several values, all combinations of which are measured; the last varies fastest."""
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("auto", "xla", "cudnn", "flash", "chunked")


@dataclass(frozen=True)
class BenchOptions(Settings):
    """Options of `uam bench`."""

    out: Annotated[
        str, Option(help="Folder for the record, table, plots and two edits a case.")
    ] = "uam-bench"
    model: Annotated[
        LocalName | None, Option(help="As in `uam edit --model`. Default: `scenes`.")
    ] = None
    variant: Variant = None
    shape: Annotated[
        str | None,
        Option(metavar="sd15|sd21", help="Random weights of this shape, without a download."),
    ] = None
    device: Annotated[
        tuple[str, ...],
        Option(metavar="cpu|gpu|tpu", help="Kind of device. Default: the best that JAX finds."),
    ] = ()
    devices: Annotated[
        tuple[int, ...],
        Option(min=1, help="Number of devices; virtual ones with `--device cpu`."),
    ] = (1,)
    dtype: Annotated[
        tuple[str, ...],
        Option(metavar="auto|float32|bfloat16|float16", help="Number format inside the networks."),
    ] = ("auto",)
    attention: Annotated[
        tuple[str, ...],
        Option(metavar="auto|xla|cudnn|flash|chunked", help="Implementation of attention."),
    ] = ("auto",)
    size: Annotated[
        tuple[int, ...], Option(min=1, help="Side of the pictures. Default: the model's own.")
    ] = ()
    batch: Annotated[tuple[int, ...], Option(min=1, help="Pictures per device at a time.")] = (1, 4)
    steps: Annotated[
        tuple[int, ...], Option(min=1, help="Steps. Default: as the settings say.")
    ] = ()
    targets: Annotated[tuple[int, ...], Option(min=1, help="Targets per picture.")] = (1,)
    task: Annotated[
        tuple[str, ...], Option(metavar="invert|edit|batch", help="Tasks. Default: all three.")
    ] = ()
    repeats: Annotated[int, Option(min=1, help="Runs of each task after the first.")] = 5
    precision: Precision = None
    peak: Annotated[
        float | None,
        Option(help="Peak speed of a device in TFLOP/s, instead of the one that is known for it."),
    ] = None

    def cases(self) -> "list[Case]":
        """Lists every combination of the options that take several values.

        Raises:
          InputError: an option has an unknown value, or two options exclude each other.
        """
        from uam_jax.evaluation.speed import TASKS, Case

        check_one_model(self.model, self.variant, self.shape)
        check_values("--device", self.device, get_args(Device))
        check_values("--dtype", self.dtype, _DTYPES)
        check_values("--attention", self.attention, _ATTENTION)
        check_values("--task", self.task, TASKS)
        if self.shape:
            from uam_jax.models.configs import PUBLISHED

            check_values("--shape", [self.shape], PUBLISHED)
        self.check()
        base = Case(
            model=None if self.shape else self.model or "scenes",
            variant=self.variant,
            shape=self.shape,
            config=self.config,
            overrides=self.overrides,
            precision=self.precision,
            tasks=self.task or TASKS,
            repeats=self.repeats,
            peak=self.peak,
        )
        values = itertools.product(*(getattr(self, name) or (None,) for name in _VARIED))
        return [replace(base, **dict(zip(_VARIED, each, strict=True))) for each in values]


def bench(console: Console, options: BenchOptions) -> dict[str, Any]:
    """Measures speed and memory.

    An option of type list, or with a choice of values, can be repeated: all combinations are measured.
    """
    from uam_jax.cli.bench_run import run_bench

    return run_bench(options, console)


def compare(
    console: Console,
    records: Annotated[
        tuple[LocalName, ...],
        Argument(
            metavar="A.json B.json ...",
            help="Records of `uam bench` or `uam plan`, or their folders.",
        ),
    ],
    out: Annotated[str | None, Option(help="File for the table, as Markdown.")] = None,
) -> dict[str, Any]:
    """Compares machines, backends, dtypes and versions side by side: their speed, memory and edits."""
    from uam_jax.cli.bench_compare import run_compare

    return run_compare(records, out)
