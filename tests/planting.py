"""Planted models: the heads that write are known, so that a method can be asked for them."""
from dataclasses import replace

import torch

from spatial_circuits.model import transformer as dit


def grove(tiny, monkeypatch, writing, deaf=()):
    """An untrained model of 3 layers of 4 heads in which these cross-attention heads write, and those that are deaf read no stream."""
    monkeypatch.setitem(dit.SIZES, "grove", (3, 4, 8))
    net = dit.build_transformer("grove", tiny.encoder.dim, 3)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(net.proj_out.weight, std=0.3, generator=generator)
    for layer, block in enumerate(net.transformer_blocks):
        weight = block.attn2.to_out[0].weight
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
        for head in range(4):
            part = slice(head * 8, (head + 1) * 8)
            if (layer, head) not in writing:
                weight.data[:, part] = 0
            if (layer, head) in deaf:
                block.attn2.to_q.weight.data[part] = 0
    return replace(tiny, transformer=net.eval().requires_grad_(False))
