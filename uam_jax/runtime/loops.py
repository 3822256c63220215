"""`lax.scan` whose body computes nothing anew in every turn that is the same in all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import lax
from jax.extend import core

from uam_jax.runtime import platforms

_WORTH_KEEPING = ("dot_general", "transpose")
"""Operations whose results are worth their memory: keys and values of a text, convolution kernels in another order."""

# Part of the key of JAX's caches, as the platform is.
_as_written = jax.make_user_context(False)


def loops_as_written() -> AbstractContextManager[None]:
    """Leaves every loop that is traced inside the `with` block as it is, to count what it does."""
    return _as_written(True)


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan`, with products and transpositions of what no turn changes computed once, before the first.

    XLA's compilers for CPUs and TPUs move such work out of a loop; the one for GPUs does not.
    """
    if platforms.current().name != "gpu" or _as_written.value:
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
    renamed: dict[Any, Any] = {}
    equations = list(_flat(jaxpr.eqns, renamed))
    results = [_read(x, renamed) for x in jaxpr.outvars]
    fixed, alike = set(jaxpr.constvars), []
    for equation in equations:
        if fixed.issuperset(_variables(equation.invars)) and not equation.effects:
            fixed.update(equation.outvars)
            alike.append(equation)
    wanted, moved = set(), set[int]()
    for equation in reversed(alike):
        if equation.primitive.name in _WORTH_KEEPING or not wanted.isdisjoint(equation.outvars):
            moved.add(id(equation))
            wanted.update(_variables(equation.invars))
    first = [each for each in equations if id(each) in moved]
    staying = [each for each in equations if id(each) not in moved]
    used = {x for each in staying for x in _variables(each.invars)} | _variables(results)
    known = [x for each in first for x in each.outvars if x in used]
    constants, names = list(jaxpr.constvars), jaxpr.debug_info.with_unknown_names()
    before = jaxpr.replace(
        constvars=[], invars=constants, outvars=known, eqns=first, debug_info=names
    )
    given = [*constants, *known, *jaxpr.invars]
    inside = {"constvars": [], "invars": given, "outvars": results, "eqns": staying}
    return before, jaxpr.replace(**inside, debug_info=names)


def _flat(equations: Sequence[Any], renamed: dict[Any, Any]) -> Iterator[Any]:
    """The equations with those of jitted functions in their place, such as a network's; each has variables of its own.

    Args:
      equations: of a jaxpr.
      renamed: variables by those that they had there; those of the results are added.
    """
    for equation in equations:
        given = [_read(x, renamed) for x in equation.invars]
        inner = equation.params["jaxpr"] if equation.primitive.name == "jit" else None
        if inner and not inner.consts:
            own = dict(zip(inner.jaxpr.invars, given, strict=True))
            yield from _flat(inner.jaxpr.eqns, own)
            made = [_read(x, own) for x in inner.jaxpr.outvars]
        else:
            made = [core.Var(x.aval) for x in equation.outvars]
            yield equation.replace(invars=given, outvars=made)
        renamed.update(zip(equation.outvars, made, strict=True))


def _read(x: Any, renamed: dict[Any, Any]) -> Any:
    return x if isinstance(x, core.Literal) else renamed.get(x, x)


def _variables(given: Sequence[Any]) -> set[Any]:
    return {x for x in given if not isinstance(x, core.Literal)}
