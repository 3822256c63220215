"""The same edits in PyTorch over diffusers' networks, as fast as we can write them: `vs_torch.py` runs it against ours.

One network call a step: the rows of all branches go side by side, guidance's halves too. In the reduced form
the uniform branch's vectors and the text's keys and values are computed once per edit. The form as released makes
as many evaluations as the authors' code, 350 for 50 steps: the source's second half too, which the null prompt
makes superfluous, and keys, values and uniform outputs from the text's states in every call. It has fused
attention all the same, so it is rather faster than what was released.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional as F
from transformers import CLIPTextModel

from uam_jax import EditConfig
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.method.plan import Plan
from uam_jax.method.schedule import Schedule

Tensor = torch.Tensor


class Told(NamedTuple):
    """What the attention layers are told besides their input; rows lie in parts of a batch each.

    Attributes:
      uniform: how many rows, the first ones, have uniform maps.
      states: (rows, 77, d), the text of every row; None where keys and values are given.
      keys: (rows - uniform, heads, 77, d) of every transformer block, likewise the values.
      values: see `keys`.
      vectors: (1, 1, c), the cross-attention's output of the uniform rows, of every block.
      source_of: (rows,), the row from which each takes its self-attention's keys and values; None
        where each takes its own.
      taken: rows from which any takes, the first ones.
      blocks: [first, end) of the blocks where that holds.
    """

    uniform: int
    states: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    vectors: tuple[Tensor, ...] = ()
    source_of: Tensor | None = None
    taken: int = 0
    blocks: tuple[int, int] = (0, 0)


class _Attention(torch.nn.Module):
    """What both kinds share: heads and the output's projection, of one of diffusers' layers."""

    def __init__(self, layer: Any, block: int) -> None:
        super().__init__()
        self.block, self.heads, self.to_out = block, layer.heads, layer.to_out[0]

    def split(self, x: Tensor) -> Tensor:
        """(b, n, c) -> (b, heads, n, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


class SelfAttention(_Attention):
    """Pixels to pixels, with one product for queries, keys and values, and MasaCtrl where it is told."""

    def __init__(self, layer: Any, block: int) -> None:
        super().__init__(layer, block)
        weights = [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]
        self.weight = torch.nn.Parameter(torch.cat(weights), requires_grad=False)

    def forward(self, x: Tensor, *, told: Told, **unused: None) -> Tensor:
        first, end = told.blocks
        if told.source_of is None or not first <= self.block < end:
            return self.attend(*(self.split(y) for y in F.linear(x, self.weight).chunk(3, -1)))
        width = len(self.weight) // 3
        query = F.linear(x, self.weight[:width])
        both = F.linear(x[: told.taken], self.weight[width:]).index_select(0, told.source_of)
        return self.attend(*(self.split(y) for y in (query, *both.chunk(2, -1))))


class CrossAttention(_Attention):
    """Pixels to text; the first rows uniformly."""

    def __init__(self, layer: Any, block: int) -> None:
        super().__init__(layer, block)
        self.to_q, self.to_k, self.to_v = layer.to_q, layer.to_k, layer.to_v

    def forward(self, x: Tensor, *, told: Told, **unused: None) -> Tensor:
        query = self.split(self.to_q(x[told.uniform :]))
        if told.states is None:
            text = self.attend(query, told.keys[self.block], told.values[self.block])
            vector = told.vectors[self.block] if told.uniform else None
        else:
            value = self.to_v(told.states)
            key = self.split(self.to_k(told.states[told.uniform :]))
            text = self.attend(query, key, self.split(value[told.uniform :]))
            vector = self.to_out(value[: told.uniform].mean(1, keepdim=True))
        if vector is None:
            return text
        return torch.cat([vector.expand(told.uniform, x.shape[1], -1), text])


def replace_attention(unet: Any) -> list[CrossAttention]:
    """Puts both layers into each transformer block, numbered as executed; returns those for the text."""
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    layers = [layer for part in parts for layer in getattr(part, "attentions", ())]
    found = []
    for block, holder in enumerate(inner for layer in layers for inner in layer.transformer_blocks):
        holder.attn1 = SelfAttention(holder.attn1, block)
        holder.attn2 = CrossAttention(holder.attn2, block)
        found.append(holder.attn2)
    return found


class TorchEditor:
    """A checkpoint's networks in PyTorch and the edit with them.

    Attributes:
      rows: single-sample U-Net evaluations made so far.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        compiled: str = "",
        channels_last: bool = True,
    ) -> None:
        """Loads a model.

        Args:
          folder: in diffusers' layout.
          device: "cpu" or "cuda".
          dtype: of weights and computation; latents are float32 in any case.
          compiled: mode of `torch.compile`; "" runs eagerly.
          channels_last: memory format of U-Net and VAE.
        """
        self.device, self.dtype, self.rows = device, getattr(torch, dtype), 0
        self.tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self.schedule = Schedule.from_config(config)
        load = {"torch_dtype": self.dtype, "low_cpu_mem_usage": False}
        networks = (
            UNet2DConditionModel.from_pretrained(folder / "unet", **load),
            AutoencoderKL.from_pretrained(folder / "vae", **load),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=self.dtype),
        )
        self.cross = replace_attention(networks[0])
        self.unet, self.vae, self.text_encoder = (
            network.to(device).requires_grad_(False).eval() for network in networks
        )
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self._noise, self._encode, self._decode = self._networks()
        torch.backends.cudnn.benchmark = True
        if compiled:
            # A program for each set of rows and shapes, in which nothing is left open.
            torch._dynamo.config.recompile_limit = 256
            torch._inductor.config.freezing = device == "cpu"
            self._noise, self._encode, self._decode = (
                torch.compile(network, mode=compiled, dynamic=False)
                for network in (self._noise, self._encode, self._decode)
            )

    def _networks(self) -> tuple[Any, Any, Any]:
        unet, vae = self.unet, self.vae

        def noise(latent: Tensor, timestep: Tensor, told: Told) -> Tensor:
            return unet(latent, timestep, None, cross_attention_kwargs={"told": told}).sample

        def encode(pictures: Tensor) -> Tensor:
            return vae.encode(pictures).latent_dist.mean

        def decode(latents: Tensor) -> Tensor:
            return vae.decode(latents).sample.clamp(-1, 1)

        return noise, encode, decode

    def _given(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, memory_format=self.format)

    @torch.inference_mode()
    def edit(
        self,
        images: np.ndarray,
        targets: Sequence[str],
        config: EditConfig,
        *,
        as_released: bool = False,
    ) -> np.ndarray:
        """Edits pictures, (b, h, w, 3) in [-1, 1], like `Editor.edit` with preserve "latent".

        Args:
          images: the originals.
          targets: a prompt each.
          config: see `edit_latents`.
          as_released: make the evaluations of the released code.
        """
        z0 = self._encode(self._given(torch.from_numpy(images).movedim(-1, 1))).float()
        scale = self.vae.config.scaling_factor
        latents = self.edit_latents(z0 * scale, targets, config, as_released=as_released)
        pictures = self._decode(self._given(latents / scale))
        return pictures.float().movedim(1, -1).cpu().numpy()

    @torch.inference_mode()
    def edit_latents(
        self, z0: Tensor, targets: Sequence[str], config: EditConfig, *, as_released: bool = False
    ) -> Tensor:
        """Edits scaled latents, (b, c, h, w) float32.

        Args:
          z0: clean latents.
          targets: a prompt each.
          config: source told nothing, uniform auxiliary, rule "released", "auto" or "none"; no region.
          as_released: make the evaluations of the released code.

        Raises:
          ValueError: the config asks for something else.
        """
        return _Edit(self, z0.to(self.device), targets, config, as_released).run()

    def condition(self, texts: Sequence[str]) -> Tensor:
        """Texts -> the encoder's states, (b, 77, d)."""
        ids = torch.from_numpy(self.tokenizer.encode(list(texts))).long().to(self.device)
        return self.text_encoder(ids).last_hidden_state

    def noise(self, latent: Tensor, timestep: Tensor, level: float, told: Told) -> Tensor:
        """One call, as epsilon in float32; `level` is ᾱ of the latent."""
        self.rows += len(latent)
        output = self._noise(self._given(latent), timestep, told).float()
        if self.schedule.prediction_type == "epsilon":
            return output
        return level**0.5 * output + (1 - level) ** 0.5 * latent


class _Edit:
    """One edit: what its steps share, and the steps."""

    def __init__(
        self,
        editor: TorchEditor,
        z0: Tensor,
        targets: Sequence[str],
        config: EditConfig,
        as_released: bool,
    ) -> None:
        self.editor, self.z0, self.config, self.as_released = editor, z0, config, as_released
        schedule, count = editor.schedule, config.steps
        self.plan = plan_of(config, schedule, as_released=as_released)
        timesteps = schedule.spaced(config.spacing).timesteps(count)
        self.timesteps = [torch.tensor([t], device=editor.device) for t in timesteps.tolist()]
        # ᾱ before the first step, before the second, …, after the last.
        self.levels = [*schedule.alpha_bar[timesteps].tolist(), schedule.final_alpha_bar]
        null = editor.condition([""])
        self.texts = {"null": null.expand(len(z0), -1, -1), "target": editor.condition(targets)}
        self.made: dict[Any, Told] = {}
        if as_released:
            return
        mean = null.mean(1, keepdim=True)
        self.vectors = tuple(layer.to_out(layer.to_v(mean)) for layer in editor.cross)
        # By text and block, a key and a value.
        self.pairs = {
            name: [
                (layer.split(layer.to_k(states)), layer.split(layer.to_v(states)))
                for layer in editor.cross
            ]
            for name, states in self.texts.items()
        }

    def told(self, uniform: bool, names: Sequence[str], controlled: bool = False) -> Told:
        """Of rows [auxiliary,] then a part for each text; controlled: [auxiliary,] source, target."""
        key = uniform, tuple(names), controlled
        if key in self.made:
            return self.made[key]
        b, first = len(self.z0), int(uniform)
        told = Told(b * first)
        if self.as_released:
            told = told._replace(
                states=torch.cat([self.texts[name] for name in ["null"] * first + [*names]])
            )
        else:
            blocks = list(zip(*(self.pairs[name] for name in names), strict=True))
            keys, values = (
                tuple(torch.cat([pair[part] for pair in block]) for block in blocks)
                for part in (0, 1)
            )
            told = told._replace(keys=keys, values=values, vectors=self.vectors)
        if controlled:
            sources = self.plan.source_rows
            parts = [min(part, sources - 1) for part in range(self.plan.target_rows)]
            order = [*range(first + sources), *(first + part for part in parts)]
            rows = (torch.tensor(order)[:, None] * b + torch.arange(b)).flatten()
            control = self.config.control
            told = told._replace(
                source_of=rows.to(self.editor.device),
                taken=b * (first + sources),
                blocks=(control.block_start, control.block_end),
            )
        return self.made.setdefault(key, told)

    def run(self) -> Tensor:
        trajectory, auxiliary = self.invert()
        return self.denoise(trajectory, auxiliary)

    def invert(self) -> tuple[list[Tensor], Tensor]:
        """The text's latents of all levels, clean first, and the uniform one of the deepest that is needed."""
        steps, depth = self.plan.steps, self.plan.depth
        reached, auxiliary = [self.z0], self.z0
        for level in range(steps):
            uniform, i = level < depth, steps - 1 - level
            latent = torch.cat([auxiliary, reached[-1]]) if uniform else reached[-1]
            told = self.told(uniform, ["null"])
            below, above = self.levels[i + 1], self.levels[i]
            noise = self.editor.noise(latent, self.timesteps[i], below, told)
            latent = arrive(clean_estimate(latent, noise, below), noise, above)
            if uniform:
                auxiliary, latent = latent.chunk(2)
            reached.append(latent)
        return reached, auxiliary

    def denoise(self, trajectory: list[Tensor], auxiliary: Tensor) -> Tensor:
        """The edited latent."""
        plan, config, b = self.plan, self.config, len(self.z0)
        source = target = trajectory[-1]
        thresholds = np.linspace(0, config.mask.quantile, plan.steps).tolist()
        change: Any = 0.0
        for part in plan.segments:
            for i in range(part.start, part.stop):
                uniform = i >= plan.steps - plan.depth
                sources = plan.source_rows if part.source else 0
                if config.source == "anchored":
                    source = trajectory[plan.steps - i]
                names = ["null"] * (sources + plan.target_rows - 1) + ["target"]
                rows = [auxiliary] * uniform + [source] * sources + [target] * plan.target_rows
                level, below = self.levels[i : i + 2]
                noises = self.editor.noise(
                    torch.cat(rows),
                    self.timesteps[i],
                    level,
                    self.told(uniform, names, part.controlled),
                )
                noise_u, noise_s, noise_t = noises.split(
                    [b * uniform, b * sources, b * plan.target_rows]
                )
                noise_s, noise_t = self.guided(noise_s), self.guided(noise_t)
                clean = clean_estimate(target, noise_t, level)
                if uniform:
                    clean_u = clean_estimate(auxiliary, noise_u, level)
                    auxiliary = arrive(clean_u, noise_u, below)
                if part.source:
                    clean_s = clean_estimate(source, noise_s, level)
                    difference = clean_s - clean
                    change = change + difference.abs().mean(1, keepdim=True)
                    if part.adaptive:
                        edit = self.mask(difference, change, thresholds[i])
                        clean = clean_u.lerp(clean, edit)
                        if config.mask.source_line:
                            clean_s = clean_s.lerp(clean_u, edit)
                    source = arrive(clean_s, noise_s, below)
                target = arrive(clean, noise_t, below)
        return target

    def guided(self, noise: Tensor) -> Tensor:
        """Of [unconditional,] conditional rows."""
        if len(noise) <= len(self.z0):
            return noise
        without, prompted = noise.chunk(2)
        return without + self.config.guidance * (prompted - without)

    def mask(self, difference: Tensor, change: Tensor, quantile: float) -> Tensor:
        """E: 1 where the target may differ."""
        mask = self.config.mask
        if mask.rule == "auto":
            even = smooth(change)
            return dilate((even > otsu(even.flatten(1))).float(), mask.radius)
        magnitude = difference.abs()
        level = magnitude.flatten(1).quantile(quantile, dim=1)[:, None, None, None]
        return dilate((magnitude > 2 * level).float(), mask.radius)


def plan_of(config: EditConfig, schedule: Schedule, *, as_released: bool = False) -> Plan:
    """The evaluations of an edit here.

    Args:
      config: what is to be done.
      schedule: the model's.
      as_released: the source in two halves and all three branches from the start, as the released code has it.

    Raises:
      ValueError: `config` asks for what is not written here.
    """
    plan = config.plan(schedule.spaced(config.spacing).timesteps(config.steps))
    refused = {
        "source_context": config.source_context != "null",
        "inversion": config.inversion.uniformity != 0 or config.auxiliary_uniformity != 1,
        "auxiliary": plan.auxiliary == "original",
        "region": config.region.target or config.region.inversion,
        "mask.rule": config.mask.rule == "algorithm1",
    }
    if any(refused.values()):
        raise ValueError(f"not written here: {', '.join(k for k, v in refused.items() if v)}")
    if as_released:
        if config.source != "replay" or plan.auxiliary != "replay":
            raise ValueError("the released code replays source and auxiliary")
        plan = dataclasses.replace(plan, source_rows=2)
    return plan


def clean_estimate(latent: Tensor, noise: Tensor, level: float) -> Tensor:
    return (latent - (1 - level) ** 0.5 * noise) / level**0.5


def arrive(clean: Tensor, noise: Tensor, level: float) -> Tensor:
    return level**0.5 * clean + (1 - level) ** 0.5 * noise


def dilate(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius else mask


def smooth(x: Tensor) -> Tensor:
    """Binomial weights 1 2 1 along both sides of (b, 1, h, w); the border's pixels are repeated."""
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), taps.outer(taps)[None, None])


def otsu(values: Tensor) -> Tensor:
    """The cut of each row of (b, n) that leaves the least variance within its two classes; (b, 1, 1, 1)."""
    ordered, count = values.sort(1).values, values.shape[1]
    low = torch.arange(1, count, device=values.device) / count
    sums = (ordered - ordered.mean(1, keepdim=True)).cumsum(1)[:, :-1] / count
    best = (sums**2 / (low * (1 - low))).argmax(1, keepdim=True)
    cut = (ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2
    return cut[:, :, None, None]
