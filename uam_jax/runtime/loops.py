"""`lax.scan` whose body computes nothing anew in every turn that is the same in all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from uam_jax.runtime import platforms

_WORTH_KEEPING = ("dot_general", "transpose")
"""Operations whose results are worth their memory: keys and values of a text, convolution kernels in another order."""


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan`, with products and transpositions of what no turn changes computed once, before the first.

    XLA's compilers for CPUs and TPUs move such work out of a loop; the one for GPUs does not.
    """
    if platforms.current().name != "gpu":
        return lax.scan(body, carry, xs)
    first = jax.tree.map(lambda x: x[0], xs)
    traced, result = jax.make_jaxpr(body, return_shape=True)(carry, first)
    before, inside = _split(traced.jaxpr)
    known = core.jaxpr_as_fun(core.ClosedJaxpr(before, ()))(*traced.consts)
    run, results = core.jaxpr_as_fun(core.ClosedJaxpr(inside, ())), jax.tree.structure(result)

    def turn(carry: Any, x: Any) -> tuple[Any, Any]:
        return results.unflatten(run(*traced.consts, *known, *jax.tree.leaves((carry, x))))

    return lax.scan(turn, carry, xs)


def _split(jaxpr: core.Jaxpr) -> tuple[core.Jaxpr, core.Jaxpr]:
    """The work before a loop, from the body's constants; and the body, from those, that work's results and its x."""
    fixed, alike = set(jaxpr.constvars), []
    for equation in jaxpr.eqns:
        if fixed.issuperset(_variables(equation.invars)) and not equation.effects:
            fixed.update(equation.outvars)
            alike.append(equation)
    wanted, moved = set(), set[int]()
    for equation in reversed(alike):
        if equation.primitive.name in _WORTH_KEEPING or not wanted.isdisjoint(equation.outvars):
            moved.add(id(equation))
            wanted.update(_variables(equation.invars))
    first = [each for each in jaxpr.eqns if id(each) in moved]
    staying = [each for each in jaxpr.eqns if id(each) not in moved]
    used = {x for each in staying for x in _variables(each.invars)} | _variables(jaxpr.outvars)
    known = [x for each in first for x in each.outvars if x in used]
    constants, names = list(jaxpr.constvars), jaxpr.debug_info.with_unknown_names()
    before = jaxpr.replace(
        constvars=[], invars=constants, outvars=known, eqns=first, debug_info=names
    )
    given = [*constants, *known, *jaxpr.invars]
    return before, jaxpr.replace(constvars=[], invars=given, eqns=staying, debug_info=names)


def _variables(given: Sequence[Any]) -> set[Any]:
    return {x for x in given if not isinstance(x, core.Literal)}
