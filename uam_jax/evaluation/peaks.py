"""Peak rates of chips: the makers' figures for dense matrix products, by JAX's name of the device.

Sources: NVIDIA's data sheets of the named products (figures with sparsity are halved); for the GeForce cards the
architecture white papers (with float32 accumulation); Google Cloud's pages on each TPU version. JAX sees the two
halves of a TPU v2, v3 or 7x chip as two devices, so that each has half of the chip's figure.
"""

import re

_COLUMNS = ("bfloat16", "float16", "tf32", "float32")
_GPUS: dict[str, tuple[float | None, ...]] = {
    r"(?<!G)B200": (2250, 2250, 1125, 75),
    r"H(100|200)(?!.*(PCIe|NVL))": (989.4, 989.4, 494.7, 66.9),
    r"H100.*PCIe": (756, 756, 378, 51),
    r"A100": (312, 312, 156, 19.5),
    r"A10(?!\w)": (125, 125, 62.5, 31.2),
    r"A6000(?!.*Ada)": (154.8, 154.8, 77.4, 38.7),
    r"L40S": (362, 362, 183, 91.6),
    r"L4(?!\w)": (121, 121, 60, 30.3),
    r"T4(?!\w)": (None, 65, None, 8.1),
    r"V100.*SXM": (None, 125, None, 15.7),
    r"V100.*PCIE": (None, 112, None, 14),
    r"RTX 4090(?! D| Laptop)": (165.2, 165.2, 82.6, 82.6),
    r"RTX 3090(?! Ti)": (71, 71, 35.6, 35.6),
}
"""TFLOP/s by column; None if the device has no units for the type."""

_TPUS: dict[str, float] = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    "TPU7x": 1153.5,
}
"""TFLOP/s in bfloat16 of one JAX device."""

_PASSES = {"default": 1, "high": 3, "highest": 6}
"""The number of bfloat16 products that a TPU needs for one product of float32 matrices."""


def peak_flops(kind: str, dtype: str, precision: str = "default") -> float | None:
    """Peak FLOP/s of a device; None if it is not listed here.

    Args:
      kind: JAX's `device_kind`.
      dtype: of the matrices: float32, bfloat16 or float16.
      precision: of float32 products (`jax.default_matmul_precision`). On GPUs "highest" means float32, and
        other values mean tf32 if the GPU has it; on TPUs a product takes one, three or six bfloat16 products.
    """
    if (tpu := _TPUS.get(kind)) is not None:
        passes = _PASSES[precision] if dtype == "float32" else 1
        return None if dtype == "float16" else tpu / passes * 1e12
    for pattern, figures in _GPUS.items():
        if re.search(pattern, kind):
            by_kind = dict(zip(_COLUMNS, figures, strict=True))
            if dtype == "float32" and precision != "highest":
                dtype = "tf32" if by_kind["tf32"] else dtype
            found = by_kind[dtype]
            return None if found is None else found * 1e12
    return None
