"""Attention layers for diffusers' U-Net that serve several branches in one call, as `torch_editor` needs them."""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


class AttentionInputs(NamedTuple):
    """Inputs of the attention layers besides the pixels, for a network call of several parts of a batch each.

    Attributes:
      uniform: the number of rows with uniform maps, which come first.
      states: (rows, 77, d), the text of every row; None if keys and values are given.
      keys: (rows - uniform, heads, 77, d) for every transformer block.
      values: like `keys`.
      vectors: (1, 1, c), the cross-attention's output for uniform rows, for every block.
      source_of: (rows,), the row whose keys and values each row uses in self-attention; None if each uses
        its own.
      taken: the number of rows whose keys and values are used, which come first.
      blocks: the half-open range of blocks in which `source_of` holds.
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
    """The parts that both kinds of attention share: the heads and the output's projection of a layer of diffusers."""

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
    """Attention between pixels, with one product for queries, keys and values; MasaCtrl if `source_of` is given."""

    def __init__(self, layer: Any, block: int) -> None:
        super().__init__(layer, block)
        weights = [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]
        self.weight = torch.nn.Parameter(torch.cat(weights), requires_grad=False)

    def forward(self, x: Tensor, *, inputs: AttentionInputs, **unused: None) -> Tensor:
        first, end = inputs.blocks
        if inputs.source_of is None or not first <= self.block < end:
            return self.attend(*(self.split(y) for y in F.linear(x, self.weight).chunk(3, -1)))
        width = len(self.weight) // 3
        query = F.linear(x, self.weight[:width])
        both = F.linear(x[: inputs.taken], self.weight[width:]).index_select(0, inputs.source_of)
        return self.attend(*(self.split(y) for y in (query, *both.chunk(2, -1))))


class CrossAttention(_Attention):
    """Attention from pixels to text; uniform in the first rows."""

    def __init__(self, layer: Any, block: int) -> None:
        super().__init__(layer, block)
        self.to_q, self.to_k, self.to_v = layer.to_q, layer.to_k, layer.to_v

    def forward(self, x: Tensor, *, inputs: AttentionInputs, **unused: None) -> Tensor:
        query = self.split(self.to_q(x[inputs.uniform :]))
        if inputs.states is None:
            text = self.attend(query, inputs.keys[self.block], inputs.values[self.block])
            vector = inputs.vectors[self.block] if inputs.uniform else None
        else:
            value = self.to_v(inputs.states)
            key = self.split(self.to_k(inputs.states[inputs.uniform :]))
            text = self.attend(query, key, self.split(value[inputs.uniform :]))
            vector = self.to_out(value[: inputs.uniform].mean(1, keepdim=True))
        if vector is None:
            return text
        return torch.cat([vector.expand(inputs.uniform, x.shape[1], -1), text])


def replace_attention(unet: Any) -> list[CrossAttention]:
    """Replaces both layers of each transformer block, numbered in execution order; returns the cross-attention."""
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    layers = [layer for part in parts for layer in getattr(part, "attentions", ())]
    found = []
    for block, holder in enumerate(inner for layer in layers for inner in layer.transformer_blocks):
        holder.attn1 = SelfAttention(holder.attn1, block)
        holder.attn2 = CrossAttention(holder.attn2, block)
        found.append(holder.attn2)
    return found
