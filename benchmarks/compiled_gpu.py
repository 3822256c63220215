"""An H100's work in a U-Net evaluation, read from the program that XLA compiles for it without one.

    pip install --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION    # VERSION of the installed jax
    python benchmarks/compiled_gpu.py --rows 24 --rows 3 --against OTHER_TREE

A loop of evaluations of Stable Diffusion 1.5's U-Net in bfloat16 is compiled for an H100, without autotuning. The table
gives, for one turn of the loop, the kernels and the bytes that they read and write, by kind. Outside of convolutions,
products and attention a kernel takes at least its bytes divided by the memory's bandwidth. Nothing is measured.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from uam_jax.evaluation.chips import CHIPS

TARGET = """gpu_device_info {
  cuda_compute_capability { major: 9 } threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "pred": 1, "s8": 1, "u8": 1}
NO_KERNEL = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"}
PRODUCTS = ("attention", "convolution", "product")


def compiled(rows: int) -> str:
    """The compiled text of ten evaluations of so many rows."""
    import jax
    import jax._src.cudnn.fused_attention_stablehlo as fused
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from uam_jax.models import StableDiffusion, TextConfig, TextEncoder, UNet, UNetConfig
    from uam_jax.models.configs import PUBLISHED
    from uam_jax.models.layers import expected_params
    from uam_jax.runtime.platforms import Platform, tracing_for
    from uam_jax.types import Condition

    try:
        from uam_jax.runtime.loops import scan
    except ImportError:  # an older tree, to compare with
        scan = jax.lax.scan
    # JAX asks the cuDNN that is installed, and none need be.
    fused.check_cudnn_version = lambda: 91000
    [device] = topologies.get_topology_desc(
        platform="cuda", topology_name="1x1x1", topology="1x1x1", target_config=TARGET
    ).devices
    place = SingleDeviceSharding(device)

    def shape(*sides: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=place)

    sd15 = PUBLISHED["sd15"]
    network = UNet(UNetConfig.from_dict(sd15["unet"]), jnp.bfloat16)
    encoder = TextEncoder(TextConfig.from_dict(sd15["text_encoder"]), jnp.bfloat16)
    denoiser = StableDiffusion(network, encoder)
    params = jax.tree.map(lambda leaf: shape(*leaf.shape), expected_params(network))

    def run(params: Any, latent: Any, text: Any) -> Any:
        def turn(latent: Any, time: Any) -> Any:
            noise, _ = denoiser.predict({"unet": params}, latent, time, Condition(text))
            return latent + noise, None

        return scan(turn, latent, jnp.arange(10))[0]

    with tracing_for(Platform("gpu", (9, 0))):
        lowered = jax.jit(run).lower(
            params, shape(rows, 64, 64, 4, dtype=jnp.float32), shape(rows, 77, 768)
        )
    return lowered.compile().as_text()


def size_of(shape: str) -> int:
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(
        BYTES.get(kind, 4) * int(np.prod([int(side) for side in sides.split(",") if side]))
        for kind, sides in found
    )


def kind_of(operation: str, name: str, line: str) -> str:
    if operation == "custom-call":
        if "fmha" in line:
            return "attention"
        return "convolution" if "cudnn$conv" in line else "product"
    if "gemm" in name:
        return "product"
    if "reduce" in name:
        return "statistics"
    return "layout" if re.search("transpose|slice|copy|concatenate", name) else "element-wise"


def turn_of(text: str) -> dict[str, dict[str, float]]:
    """Kernels and gigabytes of one turn of the loop, by kind."""
    best: dict[str, dict[str, float]] = {}
    for computation in re.split(r"\n(?=(?:ENTRY )?%)", text):
        found = collections.defaultdict(lambda: {"kernels": 0, "gigabytes": 0.0})
        sizes: dict[str, int] = {}
        for line in computation.splitlines():
            if not (
                parts := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
            ):
                continue
            name, shape, operation, rest = parts.groups()
            sizes[name] = size_of(shape)
            if operation in NO_KERNEL:
                continue
            read = sum(
                sizes.get(each, 0) for each in re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            )
            each = found[kind_of(operation, name, line)]
            each["kernels"] += 1
            each["gigabytes"] += (sizes[name] + read) / 1e9
        # The loop's body has most of the convolutions.
        if found["convolution"]["kernels"] > best.get("convolution", {}).get("kernels", 0):
            best = dict(found)
    return best


def table(trees: dict[str, dict[str, Any]], rows: int) -> list[str]:
    lines = [
        f"## {rows} rows",
        "",
        "| | " + " | ".join(trees) + " |",
        "| --- |" + " --- |" * len(trees),
    ]
    kinds = sorted({kind for found in trees.values() for kind in found})
    for kind in kinds:
        cells = [
            f"{found[kind]['kernels']} kernels, {found[kind]['gigabytes']:.2f} GB"
            if kind in found
            else "–"
            for found in trees.values()
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    least = [
        sum(each["gigabytes"] for kind, each in found.items() if kind not in PRODUCTS)
        * 1e12
        / CHIPS["h100"].bandwidth
        for found in trees.values()
    ]
    kernels = [sum(each["kernels"] for each in found.values()) for found in trees.values()]
    lines.append("| all kernels | " + " | ".join(map(str, kernels)) + " |")
    return [
        *lines,
        "| least time outside products, ms | " + " | ".join(f"{each:.2f}" for each in least) + " |",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, action="append", help="of an evaluation; 24 and 3")
    parser.add_argument("--against", type=Path, help="another source tree, compiled first")
    parser.add_argument(
        "--out", type=Path, help="file for the table; a JSON file is written beside it"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(turn_of(compiled(args.rows[0]))))
        return
    here = Path(__file__).resolve().parents[1]
    trees = ({"before": args.against.resolve()} if args.against else {}) | {"now": here}
    record: dict[str, Any] = {}
    lines = []
    for rows in args.rows or [24, 3]:
        found = {}
        for name, tree in trees.items():
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": str(tree),
                "XLA_FLAGS": "--xla_gpu_autotune_level=0",
            }
            command = [sys.executable, __file__, "--child", "--rows", str(rows)]
            said = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            found[name] = json.loads(said.stdout.splitlines()[-1])
        record[str(rows)] = found
        lines += table(found, rows)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines), encoding="utf-8")
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
