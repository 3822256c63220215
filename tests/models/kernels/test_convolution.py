"""Convolutions as products: the results of `lax.conv_general_dilated`."""

from typing import Any

import numpy as np
import pytest
from jax import lax
from random_networks import normal

from uam_jax.models.kernels.convolution import convolve


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (5, 4), (1, 3)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, "SAME"), (3, 1, [(1, 1), (1, 1)]), (3, 2, 1), (3, 2, [(0, 1), (0, 1)]), (1, 1, "SAME")],
)  # fmt: skip
def test_products_equal_the_convolution(
    sides: tuple[int, int], size: int, stride: int, padding: Any
) -> None:
    picture, kernel = normal(0, 2, *sides, 3), normal(1, size, size, 3, 5)
    ours = convolve(picture, kernel, (stride, stride), padding)
    explicit = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    direct = lax.conv_general_dilated(
        picture, kernel, (stride, stride), explicit, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, direct, rtol=1e-5, atol=1e-5)
