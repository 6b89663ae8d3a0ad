"""Layers as other libraries write them, by what they do.

They follow fairseq, torchtune, vit-pytorch, DINOv2, x-transformers and nanoGPT.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn


class MyDropout(nn.Module):
    """Somebody's own."""

    def __init__(self, p=0.3):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, self.training)


class FairseqDropout(nn.Module):
    """fairseq: a rate called p, and a module that may drop at inference too."""

    def __init__(self, p=0.3):
        super().__init__()
        self.p = p
        self.apply_during_inference = False

    def forward(self, x):
        if self.p > 0 and (self.training or self.apply_during_inference):
            return F.dropout(x, p=self.p, training=True)
        return x


class LayerDropModuleList(nn.ModuleList):
    """fairseq: iterating leaves layers out; there is no forward."""

    def __init__(self, p, modules=None):
        super().__init__(modules)
        self.p = p

    def __iter__(self):
        draws = torch.empty(len(self)).uniform_()
        for draw, module in zip(draws, super().__iter__(), strict=True):
            if not self.training or draw > self.p:
                yield module


class Encoder(nn.Module):
    def __init__(self, p=0.3, layers=6):
        super().__init__()
        self.layers = LayerDropModuleList(p, [nn.Linear(4, 4) for _ in range(layers)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class LayerDropout(nn.Module):
    """torchtune: a rate called prob, for whole layers by sample."""

    def __init__(self, prob=0.3):
        super().__init__()
        self.prob = prob

    def forward(self, function, x):
        if self.prob == 0 or not self.training:
            return function(x)
        kept = torch.bernoulli(torch.full((len(x),), 1 - self.prob)).nonzero()[:, 0]
        result = x.clone()
        result[kept] = function(x[kept])
        return result


class TuneLayer(nn.Module):
    def __init__(self, prob=0.3):
        super().__init__()
        self.drop, self.linear = LayerDropout(prob), nn.Linear(4, 4)

    def forward(self, x):
        return self.drop(self.linear, x)


class PatchDropout(nn.Module):
    """vit-pytorch: a rate called prob, of whole patches."""

    def __init__(self, prob=0.3):
        super().__init__()
        self.prob = prob

    def forward(self, x):
        if not self.training or self.prob == 0.0:
            return x
        batch, patches = x.shape[:2]
        kept = max(1, int(patches * (1 - self.prob)))
        indices = torch.randn(batch, patches).topk(kept, dim=-1).indices
        return x[torch.arange(batch)[:, None], indices]


class HandedOn(nn.Module):
    """A class that says it drops and only hands its rate on."""

    def __init__(self, layer=True, p=0.3):
        super().__init__()
        self.p = p
        if layer:
            self.inner = nn.Dropout(p)
        self.function = lambda x: F.dropout(x, p, self.training)

    def forward(self, x):
        return self.inner(x) if hasattr(self, "inner") else self.function(x)


class DropHandedOn(HandedOn):
    pass


class DropPath(nn.Module):
    """DINOv2's copy of timm's."""

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        shape = (len(x),) + (1,) * (x.dim() - 1)
        return x * x.new_empty(shape).bernoulli_(1 - self.drop_prob) / (1 - self.drop_prob)


class DinoBlock(nn.Module):
    """DINOv2: above a rate of 0.1 the branch takes a subset of the batch, without the DropPath."""

    def __init__(self, drop_path=0.3):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.sample_drop_ratio = drop_path

    def forward(self, x):
        if self.training and self.sample_drop_ratio > 0.1:
            kept = max(1, int(len(x) * (1 - self.sample_drop_ratio)))
            chosen = torch.randperm(len(x))[:kept]
            return torch.index_add(x, 0, chosen, self.linear(x[chosen]), alpha=len(x) / kept)
        return x + self.drop_path1(self.linear(x))


class Layers(nn.Module):
    """x-transformers: the rate of each layer from a tuple."""

    def __init__(self, layer_dropout=0.3, depth=4, dropout=0.1):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Dropout(dropout)) for _ in range(depth)
        )
        self.layer_dropouts = (layer_dropout,) * depth

    def forward(self, x):
        for layer, rate in zip(self.layers, self.layer_dropouts, strict=True):
            if self.training and rate > 0 and random.random() < rate:
                continue
            x = x + layer(x)
        return x


class CausalSelfAttention(nn.Module):
    """nanoGPT: the fused kernel takes a plain float, the rate of the two layers beside it."""

    def __init__(self, dropout=0.1, width=8, heads=2):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0, is_causal=True
        )
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, length, width)))


class GPT(nn.Module):
    def __init__(self, dropout=0.1, width=8, depth=2, vocabulary=20):
        super().__init__()
        self.wte, self.drop = nn.Embedding(vocabulary, width), nn.Dropout(dropout)
        self.h = nn.ModuleList(
            nn.ModuleDict({"ln": nn.LayerNorm(width), "attn": CausalSelfAttention(dropout, width)})
            for _ in range(depth)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.drop(self.wte(tokens))
        for block in self.h:
            x = x + block["attn"](block["ln"](x))
        return self.head(x)
