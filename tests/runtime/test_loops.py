"""A loop whose unchanging work is done once, where the compiler would repeat it: on GPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from random_networks import normal

from uam_jax.runtime.loops import scan
from uam_jax.runtime.platforms import Platform, tracing_for

GPU, TPU = Platform("gpu", (9, 0)), Platform("tpu")


def looped(text: Array, weights: Array) -> Callable[[Array], tuple[Array, dict[str, Array]]]:
    """Ten turns in which `text @ weights` and the turned weights are alike, and what follows is not."""

    def turn(x: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.nn.silu(text + 1) @ weights
        x = jnp.tanh(x @ keys.T @ keys + step) @ weights.T
        return x, {"mean": x.mean(), "keys": keys[0]}

    return lambda x: scan(turn, x, jnp.linspace(0, 1, 10))


def loop_of(traced: Any) -> Any:
    [equation] = [each for each in traced.jaxpr.eqns if each.primitive.name == "scan"]
    return equation.params["jaxpr"].jaxpr


def names(jaxpr: Any) -> list[str]:
    return [each.primitive.name for each in jaxpr.eqns]


@pytest.mark.parametrize(("platform", "products", "turned"), [(GPU, 3, 0), (TPU, 4, 2)])
def test_what_is_alike_in_every_turn_stays_out_of_a_gpus_loop(
    platform: Platform, products: int, turned: int
) -> None:
    run = looped(normal(0, 5, 4), normal(1, 4, 4))
    with tracing_for(platform):
        inside = names(loop_of(jax.make_jaxpr(run)(normal(2, 3, 4))))
    assert inside.count("dot_general") == products
    assert inside.count("transpose") == turned


def test_a_jitted_function_is_looked_into_wherever_it_is_called() -> None:
    """The networks are jitted, so that all programs share their trace."""

    @jax.jit
    def network(text: Array, weights: Array, x: Array, step: Array) -> tuple[Array, Array]:
        keys = jax.jit(jnp.matmul)(text, weights)
        return jnp.tanh(x + step * keys), keys

    def run(text: Array, weights: Array, x: Array) -> tuple[Array, Array]:
        def turn(x: Array, step: Array) -> tuple[Array, Array]:
            x, _ = network(text, weights, x, step)
            x, keys = network(text, weights, x, step + 1)
            return x, keys[0]

        return scan(turn, x, jnp.linspace(0, 1, 10))

    given = normal(0, 5, 4), normal(1, 4, 4), normal(2, 5, 4)
    with tracing_for(GPU):
        traced = jax.make_jaxpr(run)(*given)
        made = run(*given)
    assert "dot_general" in names(traced.jaxpr)
    assert "dot_general" not in str(loop_of(traced))
    expected = run(*given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), made, expected
    )


def test_the_results_are_those_of_lax_scan_and_so_are_gradients() -> None:
    text, weights, x = normal(0, 5, 4), normal(1, 4, 4), normal(2, 3, 4)

    def loss(text: Array, weights: Array, x: Array) -> Array:
        out, recorded = looped(text, weights)(x)
        return out.sum() + recorded["mean"].sum() + recorded["keys"].sum()

    def both(platform: Platform) -> Any:
        with tracing_for(platform):
            value = looped(text, weights)(x)
            return value, jax.grad(loss, (0, 1, 2))(text, weights, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both(GPU), both(TPU)
    )


def test_constants_are_not_spread_out_before_the_loop() -> None:
    def turn(x: Array, step: Array) -> tuple[Array, None]:
        return x + jnp.broadcast_to(jnp.arange(4.0), (1000, 4)) * step, None

    with tracing_for(GPU):
        traced = jax.make_jaxpr(lambda x: scan(turn, x, jnp.arange(3.0)))(jnp.zeros((1000, 4)))
    assert "broadcast_in_dim" in names(loop_of(traced))


def test_loops_in_a_loop_and_a_body_that_returns_its_input() -> None:
    weights = normal(1, 4, 4)

    def turn(x: Array, step: Array) -> tuple[Array, Array]:
        inner, _ = scan(lambda y, s: (y @ weights.T + s, None), x, jnp.arange(2.0))
        return inner, step

    with tracing_for(GPU):
        found = jax.jit(lambda x: scan(turn, x, jnp.arange(3.0)))(normal(0, 2, 4))
    expected = scan(turn, normal(0, 2, 4), jnp.arange(3.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
