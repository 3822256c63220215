"""The attention controls as plain PyTorch, from their description alone, and an edit's loop around them.

Every map is formed. The rows of a network call are the source's and the target's without a prompt, then those with
one, or whatever a control says; latents are NCHW.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

STEPS, GUIDANCE = 50, 7.5
LEVELS = [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
"""How many times the latent's sides are halved at each of the sixteen transformer blocks."""


class Processor:
    """Attention of one layer of transformer block `block`, computed by a control if one is given."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        control: "Control | None" = None,
    ) -> torch.Tensor:
        own = encoder_hidden_states is None
        context = hidden_states if own else encoder_hidden_states
        parts = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        control = Control() if control is None else control
        out = control.attend(own, self.block, query, key, value).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


def maps_of(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)


@dataclass
class Control:
    """No control. The samples are b of the source, b of the target, and the same again with the prompt."""

    i: int = 0

    def states(self, null: Any, source: Any, target: Any) -> list[tuple[str, torch.Tensor]]:
        """The branch and the text states of each row; those of the source before those of the target."""
        return [("source", null), ("target", null), ("source", source), ("target", target)]

    def attend(self, own: bool, block: int, query: Any, key: Any, value: Any) -> torch.Tensor:
        return maps_of(query, key) @ value

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def after(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target


@dataclass
class PromptToPrompt(Control):
    """Refinement or replacement, reweighting, windows and LocalBlend.

    Attributes:
      mapper: (b, s, s), the shares of the source's tokens in each of the target's.
      copied: (b, s), 1 where there are any.
      weights: (b, s).
      ends: (b, s, 2), the first step of a token's window and the one after its last.
      words: of LocalBlend, (b, lists, 2, s); without it None.
      self_steps: the first steps, whose self-attention is the source's.
      subtract_threshold: as a share of a map's maximum.
      stored: the sum of its maps so far, (b, lists, 2, side, side).
    """

    mapper: Any = None
    copied: Any = None
    weights: Any = None
    ends: Any = None
    words: Any = None
    subtract_threshold: float = 0.3
    self_steps: int = 30
    stored: Any = 0

    def attend(self, own: bool, block: int, query: Any, key: Any, value: Any) -> torch.Tensor:
        maps, level = maps_of(query, key), LEVELS[block]
        without_source, without_target, source, target = maps.chunk(4)
        if own:
            if self.i < self.self_steps and level >= 1:
                target = source
        else:
            copied, weights, first, last = (
                part[:, None, None] for part in (self.copied, self.weights, *self.ends.unbind(-1))
            )
            mixed = weights * (source @ self.mapper[:, None] * copied + target * (1 - copied))
            target = torch.where((first <= self.i) & (self.i < last), mixed, target)
            if level == 2 and self.words is not None:
                seen = torch.stack([source.mean(1), target.mean(1)], 1)
                seen = torch.einsum("brns,bkrs->bkrn", seen, self.words)
                side = int(seen.shape[-1] ** 0.5)
                self.stored = self.stored + seen.unflatten(-1, (side, side))
        return torch.cat([without_source, without_target, source, target]) @ value

    def after(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.i < 10 or self.words is None:
            return target
        keep = []
        for number, threshold in enumerate((0.3, self.subtract_threshold)):
            maps = self.stored[:, number]
            if number == 0:
                maps = torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
            maps = torch.nn.functional.interpolate(maps, size=target.shape[2:])
            most = maps.amax((2, 3), keepdim=True)
            keep.append((maps > threshold * most).any(1, keepdim=True))
        inside = keep[0] & ~keep[1]
        return torch.where(inside, target, source)


@dataclass
class MasaCtrl(Control):
    """Mutual self-attention, of the source's keys or of both branches', within a foreground if there is one.

    Attributes:
      first: the step that it begins with.
      union: the target has its own keys too.
      mask: (b, 1, side, side), the user's foreground of both branches.
      words: (b, 1, 2, s), of the words that are the foreground.
      threshold: of their maps' range.
      stored: the sum of their maps so far, (b, 2, side, side).
    """

    first: int = 4
    union: bool = False
    mask: Any = None
    words: Any = None
    threshold: float = 0.1
    stored: Any = None
    seen: Any = 0

    def foregrounds(self, side: int) -> list[torch.Tensor]:
        """Of source and target, (b, pixels), true inside."""
        if self.mask is not None:
            shares = torch.nn.functional.avg_pool2d(self.mask, self.mask.shape[-1] // side)
            return [shares.flatten(1) >= 0.5] * 2
        if self.stored is None:  # before the first step
            return [torch.zeros(len(self.words), side**2, dtype=torch.bool)] * 2
        least, most = (self.stored.flatten(2).aminmax(dim=2)[i][..., None, None] for i in (0, 1))
        inside = (self.stored - least) / (most - least) >= self.threshold
        sized = torch.nn.functional.interpolate(inside.float(), size=(side, side)) > 0
        return [each.flatten(1) for each in sized.unbind(1)]

    def attend(self, own: bool, block: int, query: Any, key: Any, value: Any) -> torch.Tensor:
        if not own:
            maps = maps_of(query, key)
            if self.words is not None and LEVELS[block] == 2:
                _, _, source, target = maps.chunk(4)
                both = torch.stack([source.mean(1), target.mean(1)], 1)
                seen = torch.einsum("brns,brs->brn", both, self.words[:, 0])
                side = int(seen.shape[-1] ** 0.5)
                self.seen = self.seen + seen.unflatten(-1, (side, side))
            return maps @ value
        if block < 10 or self.i < self.first:
            return maps_of(query, key) @ value
        masked = self.mask is not None or self.words is not None
        out = []
        for half in range(2):
            (qs, qt), (ks, kt), (vs, vt) = (
                part.chunk(4)[2 * half :][:2] for part in (query, key, value)
            )
            out.append(maps_of(qs, ks) @ vs)
            keys, values = (
                (torch.cat([ks, kt], 2), torch.cat([vs, vt], 2)) if self.union else (ks, vs)
            )
            logits = qt @ keys.transpose(-1, -2) / qt.shape[-1] ** 0.5
            if masked:
                source, target = self.foregrounds(int(qt.shape[2] ** 0.5))
                inside = torch.cat([source, target], 1) if self.union else source
                other = target[:, None, :, None] != inside[:, None, None, :]
                logits = torch.where(other, logits - 1e4, logits)
            out.append(logits.softmax(-1) @ values)
        return torch.cat(out)

    def after(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.words is not None:
            self.stored = self.seen
        return target


@dataclass
class PlugAndPlay(Control):
    """One row of the source without a prompt; the target has its negative one in place of none."""

    negative: Any = None
    map_steps: int = 25
    feature_steps: int = 40

    def states(self, null: Any, source: Any, target: Any) -> list[tuple[str, torch.Tensor]]:
        return [("source", null), ("target", self.negative), ("target", target)]

    def attend(self, own: bool, block: int, query: Any, key: Any, value: Any) -> torch.Tensor:
        if own and block >= 8 and self.i < self.map_steps:
            query, key = (part.chunk(3)[0].repeat(3, 1, 1, 1) for part in (query, key))
        return maps_of(query, key) @ value

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the second ResNet block of the second level on the way up, after its second convolution."""
        return hidden.chunk(3)[0].repeat(3, 1, 1, 1) if self.i < self.feature_steps else hidden


@dataclass
class Loop:
    """An edit by DDIM under a control."""

    unet: Any
    null: torch.Tensor
    source: torch.Tensor
    targets: torch.Tensor
    timesteps: list[int] = field(default_factory=lambda: [981 - 20 * i for i in range(STEPS)])

    def __post_init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alpha_bars = (1 - betas).cumprod(0).tolist()

    def alpha_bar(self, timestep: int) -> float:
        return self.alpha_bars[max(timestep, 0)]

    @torch.no_grad()
    def invert(self, latent: torch.Tensor) -> torch.Tensor:
        """With the source prompt, to the noisiest level."""
        states = self.source.expand(len(latent), -1, -1)
        for timestep in reversed(self.timesteps):
            noise = self.unet(latent, timestep, states).sample
            latent = self.moved(latent, noise, timestep - 20, timestep)
        return latent

    def moved(self, latent: Any, noise: Any, level: int, to: int) -> torch.Tensor:
        own, other = self.alpha_bar(level), self.alpha_bar(to)
        clean = (latent - (1 - own) ** 0.5 * noise) / own**0.5
        return other**0.5 * clean + (1 - other) ** 0.5 * noise

    @torch.no_grad()
    def step(
        self, control: Control, source: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Step `control.i`: the latents of both branches after it."""
        timestep, latents = self.timesteps[control.i], {"source": source, "target": target}
        rows = control.states(self.null, self.source, self.targets)
        resnet = self.unet.up_blocks[1].resnets[1].conv2
        hook = resnet.register_forward_hook(lambda *given: control.features(given[-1]))
        predicted = self.unet(
            torch.cat([latents[branch] for branch, _ in rows]),
            timestep,
            torch.cat([states.expand(len(target), -1, -1) for _, states in rows]),
            cross_attention_kwargs={"control": control},
        ).sample.chunk(len(rows))
        hook.remove()
        for branch in latents:
            halves = [noise for (of, _), noise in zip(rows, predicted, strict=True) if of == branch]
            noise = halves[-1]
            if len(halves) == 2:
                noise = halves[0] + GUIDANCE * (halves[1] - halves[0])
            latents[branch] = self.moved(latents[branch], noise, timestep, timestep - 20)
        return latents["source"], control.after(latents["source"], latents["target"])
