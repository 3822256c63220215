"""Plain PyTorch loops of inversions and of their edits without a control, written from their descriptions."""

from abc import ABC, abstractmethod
from typing import Any

import jax
import numpy as np
import torch
from parity import torch_networks as both
from parity.test_released import GUIDANCE, Reference, dilated


class Loop:
    """DDIM's way up, and an edit of plain guidance; a subclass is an inversion. Latents are NCHW."""

    times = (751, 501, 251, 1)

    def __init__(self, reference: Reference, z0: torch.Tensor) -> None:
        self.reference, self.null, self.source = reference, reference.null, reference.source
        self.way = self.up(z0)
        self.data: dict[str, Any] = {}
        """Ours by name, with their steps in the order of denoising."""

    def noise(self, latent: torch.Tensor, time: int, states: torch.Tensor) -> torch.Tensor:
        return self.reference.noise(latent, time, states)

    def levels(self, i: int) -> tuple[float, float]:
        """ᾱ where denoising step `i` starts and where it ends."""
        alpha_bars = [self.reference.alpha_bar(time) for time in (*self.times, 0)]
        return alpha_bars[i], alpha_bars[i + 1]

    def ddim(self, latent: torch.Tensor, noise: torch.Tensor, start: float, end: float) -> Any:
        clean = (latent - (1 - start) ** 0.5 * noise) / start**0.5
        return end**0.5 * clean + (1 - end) ** 0.5 * noise

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        """The latents of every level, most noise first."""
        way = [z0]
        for i in reversed(range(len(self.times))):
            level, below = self.levels(i)
            noise = self.noise(way[0], self.times[i], self.source)
            way.insert(0, self.ddim(way[0], noise, below, level))
        return way

    def unguided(self, i: int) -> torch.Tensor:
        """The condition of the unguided halves."""
        return self.null

    def asked(self, latent: torch.Tensor, i: int) -> torch.Tensor:
        return latent

    def predicted(self, latent: torch.Tensor, states: torch.Tensor, i: int) -> torch.Tensor:
        """The guided noise."""
        asked = self.asked(latent, i)
        without = self.noise(asked, self.times[i], self.unguided(i))
        return without + GUIDANCE * (self.noise(asked, self.times[i], states) - without)

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        """The latents of both branches after a step."""
        states = (self.source, self.reference.targets)
        return tuple(
            self.ddim(latent, self.predicted(latent, own, i), *self.levels(i))
            for latent, own in zip((source, target), states, strict=True)
        )


class NegativePrompt(Loop):
    def unguided(self, i: int) -> torch.Tensor:
        return self.source


class Interpolated(Loop):
    """A third of the way along the arc."""

    def unguided(self, i: int) -> torch.Tensor:
        a, b = self.source.flatten(), self.null.flatten()
        angle = torch.acos(torch.dot(a / a.norm(), b / b.norm()))
        between = (torch.sin(2 * angle / 3) * a + torch.sin(angle / 3) * b) / torch.sin(angle)
        return between.reshape(self.source.shape)


class Residual(Loop):
    def asked(self, latent: torch.Tensor, i: int) -> torch.Tensor:
        return latent + self.way[i + 1] - self.way[i]


class Direct(Loop):
    def __init__(self, reference: Reference, z0: torch.Tensor) -> None:
        super().__init__(reference, z0)
        steps = [
            super(Direct, self).step(i, self.way[i], self.way[i])[0] for i in range(len(self.times))
        ]
        self.offsets = [self.way[i + 1] - steps[i] for i in range(len(self.times))]
        self.data = {"offset": dict(enumerate(self.offsets))}

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        source, target = super().step(i, source, target)
        return source + self.offsets[i], target


class BELM(Loop):
    """The published relation of three latents, in float64."""

    times = (999, 666, 333, 0)

    def ratio(self, alpha_bar: float) -> float:
        return (1 / alpha_bar - 1) ** 0.5

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        levels = [self.reference.alpha_bar(time) for time in (*self.times, 0)]
        way = [z0.double()]
        for i in reversed(range(len(self.times))):
            here, there = levels[i + 1], levels[i]
            time = self.times[i + 1] if i + 1 < len(self.times) else 0
            noise = self.noise(way[0].float(), time, self.source).double()
            # Level 0 and the first timestep are one level.
            if len(way) < 3:
                way.insert(0, self.ddim(way[0], noise, here, there))
                continue
            low, mid, high = (self.ratio(level) for level in (levels[i + 2], here, there))
            a0, a1, a2 = (level**0.5 for level in (levels[i + 2], here, there))
            h, h1 = mid - low, high - mid
            # The published relation, solved for its noisiest latent.
            rest = (h1**2 - h**2) / h1**2 * a0 / a1 * way[0] - h * (h + h1) / h1 * a0 * noise
            way.insert(0, (way[1] - rest) * h1**2 / h**2 * a2 / a0)
        self.above: Any = None
        return way

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        """From the latents before too, which the step before left in `above`."""
        above, self.above = self.above, (source.double(), target.double())
        if i == 0:
            return self.way[1], self.way[1]
        if i + 1 == len(self.times):
            return source, target  # level 0 and the first timestep are one level
        levels = [self.reference.alpha_bar(time) for time in self.times[i - 1 : i + 2]]
        high, mid, low = (self.ratio(level) for level in levels)
        a2, a1, a0 = (level**0.5 for level in levels)
        h, h1 = mid - low, high - mid
        states = (self.source, self.reference.targets)
        reached = []
        for before, here, own in zip(above, self.above, states, strict=True):
            noise = self.predicted(here.float(), own, i).double()
            rest = (h1**2 - h**2) / h1**2 * a0 / a1 * here - h * (h + h1) / h1 * a0 * noise
            reached.append(h**2 / h1**2 * a0 / a2 * before + rest)
        return tuple(reached)


class EditFriendly(Loop):
    """Without its first step, from the levels that we drew."""

    def __init__(self, reference: Reference, z0: torch.Tensor) -> None:
        super().__init__(reference, z0)
        self.noises = [torch.zeros_like(z0)]
        for i in range(1, len(self.times)):
            guided = self.noise(self.way[i], self.times[i], self.source)
            self.noises.append(self.way[i + 1] - self.mean(self.way[i], guided, i))
        self.noises[-1] = torch.zeros_like(z0)
        self.data = {"noise": dict(enumerate(self.noises))}

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        key = jax.random.key(3)
        way = [z0]
        for i in reversed(range(1, len(self.times))):
            own = jax.random.normal(jax.random.fold_in(key, len(way)), both.as_numpy(z0).shape[1:])
            level = self.levels(i)[0]
            way.insert(0, level**0.5 * z0 + (1 - level) ** 0.5 * both.as_torch(np.array(own)[None]))
        return [torch.ones_like(z0), *way]

    def mean(self, latent: torch.Tensor, noise: torch.Tensor, i: int) -> torch.Tensor:
        level, below = self.levels(i)
        variance = (1 - below) / (1 - level) * (1 - level / below)
        clean = (latent - (1 - level) ** 0.5 * noise) / level**0.5
        return below**0.5 * clean + (1 - below - variance) ** 0.5 * noise

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        if i == 0:
            return self.way[1], self.way[1]
        states = (self.source, self.reference.targets)
        return tuple(
            self.mean(latent, self.predicted(latent, own, i), i) + self.noises[i]
            for latent, own in zip((source, target), states, strict=True)
        )


class Proximal(NegativePrompt):
    """The source's difference is 0, and in the quantile all the same."""

    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        own = self.noise(source, self.times[i], self.source)
        without = self.noise(target, self.times[i], self.source)
        difference = self.noise(target, self.times[i], self.reference.targets) - without
        both_flat = torch.cat([difference.flatten(1), torch.zeros_like(difference).flatten(1)], 1)
        self.limit = both_flat.abs().quantile(0.75, dim=1)[:, None, None, None]
        self.kept = difference.sign() * (difference.abs() - self.limit).clamp(min=0)
        noises = (own, without + GUIDANCE * self.kept)
        return tuple(
            self.ddim(latent, noise, *self.levels(i))
            for latent, noise in zip((source, target), noises, strict=True)
        )


class Corrected(Proximal):
    def step(self, i: int, source: torch.Tensor, target: torch.Tensor) -> Any:
        source, target = super().step(i, source, target)
        if self.times[i] >= 400:
            return source, target
        below, mask = self.way[i + 1], 1 - dilated(self.kept.abs() > self.limit)
        return below, target - (target - below) * mask


class NullText(Loop):
    """Each picture alone."""

    times = (501, 1)

    def __init__(self, reference: Reference, z0: torch.Tensor) -> None:
        super().__init__(reference, z0)
        rows = [self.learn(one) for one in range(len(z0))]  # each picture alone
        self.states = [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def learn(self, one: int) -> list[torch.Tensor]:
        states, found = self.null.clone(), []
        latent = self.way[0][one : one + 1]
        for i in range(len(self.times)):
            states = states.clone().requires_grad_()
            adam = torch.optim.Adam([states], lr=1e-2 * (1 - i / 100))
            prompted, below = (
                self.noise(latent, self.times[i], self.source),
                self.way[i + 1][one : one + 1],
            )
            for _ in range(10):
                without = self.reference.unet(latent, self.times[i], states).sample
                reached = self.ddim(
                    latent, without + GUIDANCE * (prompted - without), *self.levels(i)
                )
                loss = torch.nn.functional.mse_loss(reached, below)
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 1e-5 + i * 2e-5:
                    break
            states = states.detach()
            found.append(states)
            without = self.noise(latent, self.times[i], states)
            latent = self.ddim(latent, without + GUIDANCE * (prompted - without), *self.levels(i))
        return found

    def unguided(self, i: int) -> torch.Tensor:
        return self.states[i]


class Alone(Loop, ABC):
    """Each picture has a way up of its own."""

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        ways = [self.climb(z0[one : one + 1]) for one in range(len(z0))]
        return [torch.cat(parts) for parts in zip(*ways, strict=True)]

    @abstractmethod
    def climb(self, z0: torch.Tensor) -> list[torch.Tensor]:
        """The way up of one picture."""


class Iterated(Alone):
    """AIDI with three corrections, of which the one with the least residual is taken."""

    corrections = 3

    def climb(self, z0: torch.Tensor) -> list[torch.Tensor]:
        way = [z0]
        for i in reversed(range(len(self.times))):
            level, below = self.levels(i)
            reached, images, residuals = way[0], [], []
            for _ in range(self.corrections + 1):
                noise = self.noise(reached, self.times[i], self.source)
                images.append(self.ddim(way[0], noise, below, level))
                residuals.append(images[-1] - reached)
                reached = self.next(images, residuals)
            sizes = [residual.norm().item() for residual in residuals]
            way.insert(0, images[sizes.index(min(sizes))])
        return way

    def next(self, images: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
        return images[-1]


class Anderson(Iterated):
    """Likewise, mixed with weights of sum 1 that make the mixed residual least, in float64."""

    def next(self, images: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
        if len(images) < 3:
            return images[-1]
        # The first image is that of the level below, and has no part.
        images, residuals = images[1:][-3:], residuals[1:][-3:]
        rows = torch.stack([residual.flatten().double() for residual in residuals])
        products = rows @ rows.T
        count = len(images)
        system = torch.ones(count + 1, count + 1, dtype=torch.float64)
        system[:count, :count] = products + 1e-6 * products.trace() * torch.eye(count)
        system[count, count] = 0
        right = torch.zeros(count + 1, dtype=torch.float64)
        right[count] = 1
        weights = torch.linalg.solve(system, right)[:count]
        return sum(float(weight) * image for weight, image in zip(weights, images, strict=True))


class Average(Loop):
    """ReNoise with nine iterations."""

    def up(self, z0: torch.Tensor) -> list[torch.Tensor]:
        way = [z0]
        for i in reversed(range(len(self.times))):
            level, below = self.levels(i)
            reached, noises = way[0], []
            for _ in range(10):
                noises.append(self.noise(reached, self.times[i], self.source))
                reached = self.ddim(way[0], noises[-1], below, level)
            mean = sum(noises[0:5]) / 5 if self.times[i] < 250 else sum(noises[8:10]) / 2
            way.insert(0, self.ddim(way[0], mean, below, level))
        return way


class Gradient(Alone):
    """SPDInv with five updates; without steps so short that rounding decides where Adam goes."""

    times = (999, 749, 499, 249)

    def climb(self, z0: torch.Tensor) -> list[torch.Tensor]:
        way = [z0]
        for i in reversed(range(len(self.times))):
            level, below = self.levels(i)
            start = self.ddim(way[0], self.noise(way[0], self.times[i], self.source), below, level)
            reached = start.clone().requires_grad_()
            adam = torch.optim.AdamW([reached], lr=1e-3)
            for _ in range(5):
                noise = self.reference.unet(reached, self.times[i], self.source).sample
                loss = torch.nn.functional.mse_loss(reached, self.ddim(way[0], noise, below, level))
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 5e-6:
                    break
            way.insert(0, reached.detach())
        return way
