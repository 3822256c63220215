"""Calls the rules of one evaluation, site by site, and sums what they tap."""

from collections.abc import Iterable

from jaxtyping import Array, Float

from uam_jax.types import AttentionSite, Rules, Site, Taps, plain_attention


class RuleCalls:
    """The rules of one evaluation while the network is traced.

    The network draws its sites from one list as it reaches them, so that `sites` and execution cannot disagree.

    Attributes:
      rules: of this evaluation.
      context: the text's states.
      taps: sums so far, by name.
    """

    def __init__(self, rules: Rules, context: Float[Array, "#b s e"], sites: Iterable[Site]):
        self.rules, self.context, self.taps = rules, context, Taps()
        self._sites = iter(sites)

    def next_site(self) -> Site:
        """The site that execution has reached."""
        return next(self._sites)

    def attention(self, site: AttentionSite, x: Float[Array, "b n c"]) -> Float[Array, "#b #n c"]:
        """The output of an attention layer by the rule of its kind."""
        own = site.kind == "own"
        rule = self.rules.own if own else self.rules.cross
        rule = plain_attention if rule is None else rule
        result = rule(site, x, x if own else self.context)
        out, taps = result if isinstance(result, tuple) else (result, {})
        for name, tap in taps.items():
            self.taps[name] = self.taps[name] + tap if name in self.taps else tap
        return out

    def residual(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """A ResNet block's hidden state as its rule leaves it."""
        site, rule = self.next_site(), self.rules.residual
        return h if rule is None else rule(site, h)
