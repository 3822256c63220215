"""An editor in closed form, for tests of the program around it."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from uam_jax.engine.delivery import EditResult
from uam_jax.method.confidence import Calibration
from uam_jax.method.config import EditConfig


@dataclass
class FakeEditor:
    """Inverts the left half of a picture, the only part that is free to change, and fades the rest as a VAE might."""

    name: str = "fake"
    weights_hash: str = "0123456789abcdef"
    dtype: str = "float32"
    native_size: int = 64
    size_multiple: int = 8
    default_config: EditConfig = field(default_factory=lambda: EditConfig(steps=20))
    calls: list[dict[str, Any]] = field(default_factory=list)
    calibration: Calibration = field(default_factory=lambda: Calibration(bias=0.0))

    def preset(self, name: str) -> EditConfig:
        return self.default_config if name == "default" else EditConfig.load(name)

    def evaluations(
        self,
        config: EditConfig,
        *,
        targets: int = 1,
        user_mask: bool = False,
        source: str | None = None,
    ) -> int:
        return config.steps * (2 + targets)

    def compile(self, name: Any, work: Any) -> None:
        """Has no programs."""

    def edit_latents(
        self, latents: np.ndarray, target: Any, source: Any, **options: Any
    ) -> EditResult:
        self.calls.append({"target": target, "source": source, **options})
        images = options["images"]
        np.testing.assert_array_equal(latents, images)  # as `encode` made them
        [targets] = target
        left = np.arange(images.shape[2]) < images.shape[2] // 2
        edited = np.where(left[:, None], -images[0], images[0] * np.float32(0.9))
        free = np.broadcast_to(left, images.shape[1:3]).astype(np.float32)
        if options["masks"] is not None:
            free = free * options["masks"][0]
        count = len(targets)
        # At 19 dB of 22, half of a picture is familiar.
        signals = {"reconstruction": 19.0, "noise": 1.0, "changed": 1.0, "opacity": 1.0}
        return EditResult(
            images=jnp.asarray(np.stack([edited] * count)),
            latents=jnp.zeros((count, 1, 1, 4)),
            source_latents=None,
            auxiliary_latents=None,
            masks=jnp.asarray(np.stack([free] * count)),
            evaluations=0,
            source_index=np.zeros(count, int),
            error_map=jnp.zeros(images.shape[:3]),
            signals={name: jnp.full(count, value) for name, value in signals.items()},
            config=options["config"],
            calibration=self.calibration,
            figures={"source_residual": jnp.full(count, 0.12345678)},
        )

    def upload(self, images: np.ndarray) -> np.ndarray:
        return images

    def encode(self, images: np.ndarray, *, checked: bool = False) -> np.ndarray:
        return images

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return latent

    def invert(self, latent: np.ndarray, **options: Any) -> np.ndarray:
        self.calls.append(options)
        return latent

    def reconstruct(self, inversion: np.ndarray) -> np.ndarray:
        return inversion * np.float32(0.5)
