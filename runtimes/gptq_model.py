"""StarCoder2's forward over GPTQ weights, written plainly, with keys and values in given cells.

Two ways to compute: "packed" in bfloat16 from the packed codes, which is fast, and "float32" from
what the codes stand for, which is what every other way is compared with. Sums between the layers
are float32 in both. Knows nothing of which position lies in which cell.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from runtimes.errors import UsageError
from runtimes.gptq_files import Codes, Config, Files
from runtimes.gptq_linear import ByteLinear, FloatLinear, Linear, PackedLinear
from runtimes.rope import rope_tables

WAYS = ("packed", "float32")
HEAD_GROUP = 32


class Model:
    """Weights and caches of one sequence. cells: how many positions the caches hold."""

    def __init__(
        self, folder: Path, config: Config, *, cells: int, positions: int, way: str
    ) -> None:
        if way not in WAYS:
            raise UsageError(f"unknown way to compute {way!r}", expected=f"one of {WAYS}")
        self.config, self.way = config, way
        self.type = torch.bfloat16 if way == "packed" else torch.float32
        files = Files(folder, config)
        hidden = config.hidden
        self.embedding = files.read("model.embed_tokens.weight", (config.vocab, hidden))
        self.layers = [_Layer(self, files, layer) for layer in range(config.layers)]
        self.norm = _Norm(files, "model.norm", config)
        head = self.embedding
        if not config.tied:
            head = files.read("lm_head.weight", (config.vocab, hidden))
        self.head = self._head(head)
        shape = (2, config.kv_heads, cells, config.head_dim)
        self.cache = [torch.zeros(shape, dtype=self.type) for _ in range(config.layers)]
        tables = rope_tables(positions, config.head_dim, config.rope_theta)
        self.cos, self.sin = (torch.from_numpy(table)[:, None] for table in tables)

    def linear(self, codes: Codes) -> PackedLinear | FloatLinear:
        """A linear of the layers, as this way computes it."""
        if self.way == "packed":
            return PackedLinear(codes, self.config.bits)
        return FloatLinear(codes.weights(), codes.bias)

    def _head(self, weights: torch.Tensor) -> Linear:
        bits = self.config.head_bits
        if bits == 8:
            return ByteLinear(weights)
        if bits == 4:
            return self.linear(_nearest(weights, self.config.vocab))
        return FloatLinear(weights.to(self.type))

    @property
    def path(self) -> str:
        """How products are computed, for a reader."""
        if self.way == "float32":
            return "float32 weights"
        return "int4 kernel for few rows, expanded to bfloat16 for many"

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights, the embedding as it is mapped included."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        return self.embedding.nbytes + sum(linear.nbytes for linear in [*linears, self.head])

    @torch.inference_mode()
    def forward(
        self, ids: list[int], position: int, seen: range, first: int, last_only: bool
    ) -> torch.Tensor:
        """Logits float32 (1 or T, vocab) of `ids` at positions from `position` on.

        Their keys and values are written to the last T cells of `seen`, the cells that the first of
        them sees and all after those; `first` is the position in cell 0.
        """
        state = self.embedding[ids].float()
        span = slice(position, position + len(ids))
        turn = (self.cos[span], self.sin[span])
        mask = self._mask(position, seen, first, len(ids))
        for layer, cache in zip(self.layers, self.cache, strict=True):
            state = layer.forward(state, cache, seen, turn, mask)
        if last_only:
            state = state[-1:]
        return self.head(self.norm(state).to(self.type)).float()

    def _mask(self, position: int, seen: range, first: int, count: int) -> torch.Tensor | None:
        """What each query may see, additive (group * T, keys); None where it is everything."""
        if count == 1:
            return None
        keys = torch.arange(first + seen.start, first + seen.stop)
        distance = torch.arange(position, position + count)[:, None] - keys
        hidden = distance < 0
        if self.config.window_tokens is not None:
            hidden |= distance >= self.config.window_tokens
        mask = torch.zeros(hidden.shape, dtype=self.type).masked_fill_(hidden, -torch.inf)
        return mask.repeat(self.config.heads // self.config.kv_heads, 1)


def _nearest(weights: torch.Tensor, vocab: int) -> Codes:
    """4-bit codes of the head, rounded to nearest in small groups."""
    blocks = weights.float().view(vocab, -1, HEAD_GROUP)
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-12)
    zeros = (-low / scales).round()
    codes = (blocks / scales[:, :, None]).round() + zeros[:, :, None]
    codes = codes.clamp(0, 15).to(torch.uint8).view(vocab, -1)
    return Codes(codes, scales, zeros, torch.zeros(vocab), None)


class _Norm:
    """LayerNorm in float32."""

    def __init__(self, files: Files, name: str, config: Config) -> None:
        self.shape, self.eps = (config.hidden,), config.norm_eps
        self.weight, self.bias = (
            files.read(f"{name}.{k}", self.shape).float() for k in ("weight", "bias")
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _Layer:
    """One decoder layer."""

    def __init__(self, model: Model, files: Files, index: int) -> None:
        self.config, self.type = model.config, model.type
        config, at = model.config, f"model.layers.{index}"
        wide = config.kv_heads * config.head_dim
        hidden, inner = config.hidden, files.size(f"{at}.mlp.c_fc.bias")
        attention = [f"{at}.self_attn.{name}_proj" for name in "qkv"]
        shapes = [(hidden, hidden), (wide, hidden), (wide, hidden)]
        self.qkv = model.linear(files.codes(attention, shapes))
        self.out = model.linear(files.codes([f"{at}.self_attn.o_proj"], [(hidden, hidden)]))
        self.up = model.linear(files.codes([f"{at}.mlp.c_fc"], [(inner, hidden)]))
        self.down = model.linear(files.codes([f"{at}.mlp.c_proj"], [(hidden, inner)]))
        self.linears = [self.qkv, self.out, self.up, self.down]
        self.before_attention = _Norm(files, f"{at}.input_layernorm", config)
        self.before_mlp = _Norm(files, f"{at}.post_attention_layernorm", config)

    def forward(
        self,
        state: torch.Tensor,
        cache: torch.Tensor,
        seen: range,
        turn: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention and feed-forward, each added to the state (T, hidden)."""
        count, config = len(state), self.config
        x = self.qkv(self.before_attention(state).to(self.type))
        x = x.view(count, config.heads + 2 * config.kv_heads, config.head_dim)
        q, k, v = x.split([config.heads, config.kv_heads, config.kv_heads], 1)
        new = slice(seen.stop - count, seen.stop)
        cache[0, :, new] = _rotate(k, *turn).transpose(0, 1)
        cache[1, :, new] = v.transpose(0, 1)
        keys, values = cache[:, None, :, seen.start : seen.stop]  # each (1, kv_heads, keys, D)
        # query heads that share a key are rows of one product
        q = _rotate(q, *turn).view(count, config.kv_heads, -1, config.head_dim)
        rows = q.permute(1, 2, 0, 3).reshape(1, config.kv_heads, -1, config.head_dim)
        mixed = F.scaled_dot_product_attention(rows, keys, values, mask)
        mixed = mixed.view(config.kv_heads, -1, count, config.head_dim).permute(2, 0, 1, 3)
        state = state + self.out(mixed.reshape(count, -1)).float()
        x = self.up(self.before_mlp(state).to(self.type))
        return state + self.down(F.gelu(x, approximate="tanh")).float()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of (T, heads, D) in the NeoX layout, in float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
