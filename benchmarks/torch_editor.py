"""The same edits in PyTorch with diffusers' networks, written to be fast: `vs_torch.py` compares them with ours.

Each step is one network call for the rows of all branches and both halves of guidance. In the reduced form, the
vectors of the uniform branch and the text's keys and values are computed once per edit. The released form makes the 350
evaluations of the authors' code for 50 steps: it also evaluates the unguided half of the source, superfluous with the
null prompt, and computes keys, values and uniform outputs in every call, but with fused attention.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional as F
from torch_attention import AttentionInputs, Tensor, replace_attention
from transformers import CLIPTextModel

from uam_jax import EditConfig
from uam_jax.checkpoints.tokenizer import Tokenizer
from uam_jax.method.controls import MasaCtrl, NoControl
from uam_jax.method.inversions import DDIMInversion
from uam_jax.method.masks import CEILING
from uam_jax.method.plan import Plan, Row
from uam_jax.method.schedule import Schedule


class TorchEditor:
    """A checkpoint's networks in PyTorch, and edits with them.

    Attributes:
      rows: the number of single-sample U-Net evaluations so far.
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
          dtype: of weights and computation; latents are always float32.
          compiled: mode of `torch.compile`; "" runs eagerly.
          channels_last: use this memory format for U-Net and VAE.
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
            # One program for each combination of rows and shapes, without dynamic sizes.
            torch._dynamo.config.recompile_limit = 256
            torch._inductor.config.freezing = device == "cpu"
            self._noise, self._encode, self._decode = (
                torch.compile(network, mode=compiled, dynamic=False)
                for network in (self._noise, self._encode, self._decode)
            )

    def _networks(self) -> tuple[Any, Any, Any]:
        unet, vae = self.unet, self.vae

        def noise(latent: Tensor, timestep: Tensor, inputs: AttentionInputs) -> Tensor:
            return unet(latent, timestep, None, cross_attention_kwargs={"inputs": inputs}).sample

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
          targets: one prompt per picture.
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
          targets: one prompt per latent.
          config: with the null prompt for the source, a uniform auxiliary branch, the mask rule "released",
            "auto" or "none", and no region.
          as_released: make the evaluations of the released code.

        Raises:
          ValueError: the config has other values.
        """
        return _Edit(self, z0.to(self.device), targets, config, as_released).run()

    def evaluations(
        self, start: np.ndarray, targets: Sequence[str], config: EditConfig
    ) -> Callable[[], np.ndarray]:
        """A function that denoises as an edit with `config` does, without mask and inversion.

        Args:
          start: the latents of both branches at the most noise, (b, h, w, c).
          targets: one prompt per latent.
          config: without a mask, and with a source that is replayed.

        Returns:
          A function that returns the target's latents, (b, h, w, c).

        Raises:
          ValueError: the config has a mask, an anchored source, or what `edit_latents` refuses.
        """
        latents = torch.from_numpy(start).movedim(-1, 1).to(self.device)
        with torch.inference_mode():
            edit = _Edit(self, latents, targets, config, as_released=False)
        if edit.plan.depth or config.source.latents != "replay":
            raise ValueError("there is a mask, or the source is anchored")

        @torch.inference_mode()
        def run() -> np.ndarray:
            return edit.denoise([latents], latents).movedim(1, -1).cpu().numpy()

        return run

    def condition(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's states, (b, 77, d)."""
        ids = torch.from_numpy(self.tokenizer.encode(list(texts))).long().to(self.device)
        return self.text_encoder(ids).last_hidden_state

    def noise(
        self, latent: Tensor, timestep: Tensor, level: float, inputs: AttentionInputs
    ) -> Tensor:
        """The predicted noise of one network call, in float32; `level` is ᾱ of the latent."""
        self.rows += len(latent)
        output = self._noise(self._given(latent), timestep, inputs).float()
        if self.schedule.prediction_type == "epsilon":
            return output
        return level**0.5 * output + (1 - level) ** 0.5 * latent


class _Edit:
    """One edit: the values that its steps share, and the steps."""

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
        self.inputs: dict[Any, AttentionInputs] = {}
        if as_released:
            return
        mean = null.mean(1, keepdim=True)
        self.vectors = tuple(layer.to_out(layer.to_v(mean)) for layer in editor.cross)
        # Keys and values by text and block.
        self.pairs = {
            name: [
                (layer.split(layer.to_k(states)), layer.split(layer.to_v(states)))
                for layer in editor.cross
            ]
            for name, states in self.texts.items()
        }

    def attention_inputs(
        self, uniform: bool, names: Sequence[str], controlled: bool = False
    ) -> AttentionInputs:
        """Inputs for rows [auxiliary,] and a part for each text; if controlled, for [auxiliary,] source, target."""
        key = uniform, tuple(names), controlled
        if key in self.inputs:
            return self.inputs[key]
        b, first = len(self.z0), int(uniform)
        inputs = AttentionInputs(b * first)
        if self.as_released:
            inputs = inputs._replace(
                states=torch.cat([self.texts[name] for name in ["null"] * first + [*names]])
            )
        else:
            blocks = list(zip(*(self.pairs[name] for name in names), strict=True))
            keys, values = (
                tuple(torch.cat([pair[part] for pair in block]) for block in blocks)
                for part in (0, 1)
            )
            inputs = inputs._replace(keys=keys, values=values, vectors=self.vectors)
        if controlled:
            sources, targets = branch_rows(self.plan)
            parts = [min(part, sources - 1) for part in range(targets)]
            order = [*range(first + sources), *(first + part for part in parts)]
            rows = (torch.tensor(order)[:, None] * b + torch.arange(b)).flatten()
            control = self.config.control
            inputs = inputs._replace(
                source_of=rows.to(self.editor.device),
                taken=b * (first + sources),
                blocks=(control.block_start, control.block_end),
            )
        return self.inputs.setdefault(key, inputs)

    def run(self) -> Tensor:
        trajectory, auxiliary = self.invert()
        return self.denoise(trajectory, auxiliary)

    def invert(self) -> tuple[list[Tensor], Tensor]:
        """All latents of the text's inversion, clean first, and the noisiest uniform one that is needed."""
        steps, depth = self.plan.steps, self.plan.depth
        reached, auxiliary = [self.z0], self.z0
        for level in range(steps):
            uniform, i = level < depth, steps - 1 - level
            latent = torch.cat([auxiliary, reached[-1]]) if uniform else reached[-1]
            inputs = self.attention_inputs(uniform, ["null"])
            below, above = self.levels[i + 1], self.levels[i]
            noise = self.editor.noise(latent, self.timesteps[i], below, inputs)
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
        changes: list[Tensor] = []
        source_rows, targets = branch_rows(plan)
        for part in plan.segments:
            for i in range(part.start, part.stop):
                uniform = i >= plan.steps - plan.depth
                sources = source_rows if part.source else 0
                if config.source.latents == "anchored":
                    source = trajectory[plan.steps - i]
                names = ["null"] * (sources + targets - 1) + ["target"]
                rows = [auxiliary] * uniform + [source] * sources + [target] * targets
                level, below = self.levels[i : i + 2]
                noises = self.editor.noise(
                    torch.cat(rows),
                    self.timesteps[i],
                    level,
                    self.attention_inputs(uniform, names, bool(part.active)),
                )
                parts = [b * uniform, b * sources, b * targets]
                noise_u, noise_s, noise_t = noises.split(parts)
                noise_s, noise_t = self.guided(noise_s), self.guided(noise_t)
                clean = clean_estimate(target, noise_t, level)
                if uniform:
                    clean_u = clean_estimate(auxiliary, noise_u, level)
                    auxiliary = arrive(clean_u, noise_u, below)
                if part.source:
                    clean_s = clean_estimate(source, noise_s, level)
                    difference = clean_s - clean
                    changes.append(difference.abs().mean(1, keepdim=True))
                    if part.adaptive:
                        edit = self.mask(difference, sum(changes) / len(changes), thresholds[i])
                        clean = clean_u.lerp(clean, edit)
                        if config.mask.source_line:
                            clean_s = clean_s.lerp(clean_u, edit)
                    source = arrive(clean_s, noise_s, below)
                target = arrive(clean, noise_t, below)
        return target

    def guided(self, noise: Tensor) -> Tensor:
        """The guided noise from [unguided,] guided rows."""
        if len(noise) <= len(self.z0):
            return noise
        without, prompted = noise.chunk(2)
        return without + self.config.guidance * (prompted - without)

    def mask(self, difference: Tensor, change: Tensor, quantile: float) -> Tensor:
        """The edit mask E: 1 where the target may differ from the source."""
        mask = self.config.mask
        if mask.rule == "auto":
            even = smooth(change)
            cut = otsu(even.flatten(1)).clamp(max=CEILING)
            return dilate((even > cut).float(), mask.radius)
        magnitude = difference.abs()
        level = magnitude.flatten(1).quantile(quantile, dim=1)[:, None, None, None]
        return dilate((magnitude > 2 * level).float(), mask.radius)


def plan_of(config: EditConfig, schedule: Schedule, *, as_released: bool = False) -> Plan:
    """The plan of an edit in PyTorch.

    Args:
      config: of the edit.
      schedule: the model's.
      as_released: evaluate both halves of the source and all three branches in every step, like the released code.

    Raises:
      ValueError: `config` uses a part of the method that is not implemented here.
    """
    plan = config.plan(schedule.spaced(config.spacing).timesteps(config.steps))
    refused = {
        "source.condition": config.source.condition != "null",
        "control": not isinstance(config.control, MasaCtrl | NoControl),
        "sampler": config.sampler != "ddim",
        "inversion.kind": config.inversion.method != DDIMInversion(),
        "inversion": config.inversion.uniformity != 0 or config.auxiliary.uniformity != 1,
        "auxiliary": plan.auxiliary == "original",
        "outside_uniformity": config.target.outside_uniformity
        or config.inversion.outside_uniformity,
        "mask.rule": config.mask.rule == "algorithm1",
    }
    if any(refused.values()):
        raise ValueError(
            f"not implemented in PyTorch: {', '.join(k for k, v in refused.items() if v)}"
        )
    if as_released:
        if config.source.latents != "replay" or plan.auxiliary != "replay":
            raise ValueError("the released code replays both the source and the auxiliary branch")
        unguided = Row("source", "null", "unguided")
        plan = dataclasses.replace(plan, rows=(unguided, *plan.rows))
    return plan


def branch_rows(plan: Plan) -> tuple[int, int]:
    """The numbers of rows of the source and of the target."""
    sources = sum(row.branch == "source" for row in plan.rows)
    return sources, len(plan.rows) - sources


def clean_estimate(latent: Tensor, noise: Tensor, level: float) -> Tensor:
    return (latent - (1 - level) ** 0.5 * noise) / level**0.5


def arrive(clean: Tensor, noise: Tensor, level: float) -> Tensor:
    return level**0.5 * clean + (1 - level) ** 0.5 * noise


def dilate(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius else mask


def smooth(x: Tensor) -> Tensor:
    """Smooths (b, 1, h, w) by binomial weights 1 2 1 along both sides; border pixels are repeated."""
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), taps.outer(taps)[None, None])


def otsu(values: Tensor) -> Tensor:
    """Otsu's threshold of each row of (b, n), (b, 1, 1, 1): the least variance within the two classes."""
    ordered, count = values.sort(1).values, values.shape[1]
    low = torch.arange(1, count, device=values.device) / count
    sums = (ordered - ordered.mean(1, keepdim=True)).cumsum(1)[:, :-1] / count
    best = (sums**2 / (low * (1 - low))).argmax(1, keepdim=True)
    return ordered.gather(1, torch.cat([best, best + 1], 1)).mean(1)[:, None, None, None]
