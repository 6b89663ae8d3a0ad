"""A small causal transformer on bytes, with dropout where GPT-2 has it.

The dropout is at the embeddings, the attention weights and both residual branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.models.build import Task, set_path_profile

# B contexts, T tokens, W width, H heads, V tokens of the vocabulary.


class CausalAttention(nn.Module):
    """Causal attention with timm's attributes ``fused_attn`` and ``attn_drop``.

    The scheduler recognises an attention module by these names.
    """

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.fused_attn = heads, False
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(rate)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        # q, k and v have the shape (B, H, T, W / H).
        q, k, v = (
            self.qkv(x)
            .view(batch, tokens, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        if self.fused_attn:
            x = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0, is_causal=True
            )
        else:
            scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)
            ahead = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu_(1)
            x = self.attn_drop(scores.masked_fill(ahead, float("-inf")).softmax(-1)) @ v
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, width)))
        return out


class Block(nn.Module):
    """Attention, then an MLP, each after a LayerNorm and with a shortcut."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), CausalAttention(width, heads, rate)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(rate)
        )
        self.drop_path1, self.drop_path2 = DropPath(0.0), DropPath(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


class GPT(nn.Module):
    """Embeddings, blocks, a LayerNorm, and a classifier that shares the embedding's weights."""

    def __init__(
        self, vocabulary: int, context: int, width: int, depth: int, heads: int, rate: float
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.empty(context, width))
        self.pos_drop = nn.Dropout(rate)
        self.blocks = nn.Sequential(*(Block(width, heads, rate) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            # As in GPT-2, the last layer of each residual branch starts smaller in a deeper model.
            if parameter.dim() > 1:
                ends_branch = name.endswith(("attn.proj.weight", "mlp.2.weight"))
                std = 0.02 / (2 * depth) ** 0.5 if ends_branch else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the token that comes next, (B, T, V), from tokens, (B, T)."""
        x = self.pos_drop(self.embed(tokens) + self.pos_embed[: tokens.shape[1]])
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)


def gpt_micro(task: Task, *, width: int | None, depth: int | None, heads: int | None) -> nn.Module:
    """Build a `GPT`, by default of width 64, depth 4 and 2 heads."""
    width, depth, heads = width or 64, depth or 4, heads or 2
    if width % heads:
        raise ConfigError(f"model.heads is {heads}: expected a divisor of model.width ({width})")
    model = GPT(
        vocabulary=task.classes,
        context=task.context or 0,
        width=width,
        depth=depth,
        heads=heads,
        rate=task.unit,
    )
    set_path_profile(list(model.blocks), task.path)
    return model
