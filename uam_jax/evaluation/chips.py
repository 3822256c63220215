"""Chips that edits can be planned for, with their makers' figures.

Sources: Google Cloud's pages on each TPU version (memory, bandwidth, matrix units); NVIDIA's data sheets of the named
products. `evaluation.peaks` has the peak rates.
"""

import re
from dataclasses import dataclass

from uam_jax.errors import InputError
from uam_jax.evaluation.peaks import peak_flops
from uam_jax.runtime.platforms import Platform


@dataclass(frozen=True)
class Chip:
    """A chip as JAX sees it: on a TPU v4 compiled for from afar, one of its two cores. All figures are a device's.

    Attributes:
      name: as in `--for`.
      kind: JAX's `device_kind`.
      memory: bytes.
      bandwidth: of that memory, in bytes per second.
      platform: for which programs are lowered.
      clock: cycles per second of a TPU's cores; None for others.
      devices: that JAX sees in a chip.
    """

    name: str
    kind: str
    memory: float
    bandwidth: float
    platform: Platform
    clock: float | None = None
    devices: int = 1

    def peak(self, dtype: str, precision: str | None = None) -> float | None:
        """FLOP/s of products; None where the chip has no units for the type."""
        peak = peak_flops(self.kind, dtype, precision or "default")
        return peak and peak / self.devices


def _tpu(
    name: str, kind: str, gigabytes: float, rate: float, products_per_cycle: int, devices: int = 1
) -> tuple[str, Chip]:
    """A TPU by its chip's figures; the clock follows from the peak and the products in a cycle."""
    peak = peak_flops(kind, "bfloat16")
    assert peak
    share = 1e9 / devices
    clock = peak / (2 * products_per_cycle)
    return name, Chip(name, kind, gigabytes * share, rate * share, Platform("tpu"), clock, devices)


def _gpu(
    name: str, kind: str, gigabytes: float, rate: float, capability: tuple[int, int]
) -> tuple[str, Chip]:
    return name, Chip(name, kind, gigabytes * 1e9, rate * 1e9, Platform("gpu", capability))


CHIPS = dict(
    [
        # That is 1.05, 1.5, 1.75 and 1.75 GHz. For a large product the compiler's cycles come to 89 to 97 % of these
        # products in a cycle; of a v6e's matrix units the pages count half as many.
        _tpu("v4", "TPU v4", 32, 1200, 8 * 128**2, devices=2),
        _tpu("v5e", "TPU v5e", 16, 819, 4 * 128**2),
        _tpu("v5p", "TPU v5p", 95, 2765, 8 * 128**2),
        _tpu("v6e", "TPU v6e", 32, 1640, 4 * 256**2),
        _gpu("h200", "NVIDIA H200", 141, 4800, (9, 0)),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 80, 3350, (9, 0)),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 80, 2039, (8, 0)),
        _gpu("l40s", "NVIDIA L40S", 48, 864, (8, 9)),
        _gpu("l4", "NVIDIA L4", 24, 300, (8, 9)),
        _gpu("a10", "NVIDIA A10", 24, 600, (8, 6)),
        _gpu("t4", "Tesla T4", 16, 320, (7, 5)),
        _gpu("v100", "Tesla V100-SXM2-16GB", 16, 900, (7, 0)),
    ]
)


def find_chip(target: str) -> tuple[Chip, str | None]:
    """Returns a chip, and for a TPU its topology such as "v5e:2x2".

    Raises:
      InputError: the chip is not known, or a TPU's topology is missing.
    """
    name, _, topology = target.lower().partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise InputError(
            f"--for {target}: choose a topology of TPUs such as v5e:2x2, v6e:2x2, v5p:2x2x1 or v4:2x2x1, or one of "
            f"{', '.join(name for name, each in CHIPS.items() if each.clock is None)}"
        )
    if chip.clock is None:
        if topology:
            raise InputError(f"--for {target}: a GPU has no topology: give {name}")
        return chip, None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        example = f"{name}:2x2" if name in ("v5e", "v6e") else f"{name}:2x2x1"
        raise InputError(f"--for {target}: name the topology of the TPUs, such as {example}")
    return chip, f"{name}:{topology}"
