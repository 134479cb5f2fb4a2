"""StarCoder2's forward over GPTQ weights, written plainly, with keys and values in given slots.

Products run on one of several KERNEL_PATHS. "float32" multiplies with what the codes stand for;
every other path is compared with it. Sums between the layers are float32 in all of them. Knows
nothing of which position lies in which slot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtimes.backends.gptq.files import GROUPS, Codes, Files
from runtimes.backends.gptq.linear import ByteLinear, FloatLinear, Linear, PackedLinear
from runtimes.backends.gptq.tiles import ExpandedLinear, TiledLinear
from runtimes.backends.own_cache.rope import rope_tables
from runtimes.errors import UsageError

HEAD_GROUP = 32  # of a 4-bit head


@dataclass(frozen=True, slots=True)
class KernelPath:
    """How products are computed. type: of what goes into them. text: for a reader."""

    type: torch.dtype
    text: str
    linear: Callable[[Codes, int], Linear]


def _floats(kind: torch.dtype) -> Callable[[Codes, int], Linear]:
    return lambda codes, bits: FloatLinear(codes.weights().to(kind), codes.bias)


KERNEL_PATHS = {
    "float32": KernelPath(torch.float32, "float32 weights", _floats(torch.float32)),
    # on a CPU
    "packed": KernelPath(
        torch.bfloat16, "int4 kernel for few rows, expanded to bfloat16 for many", PackedLinear
    ),
    # on a GPU, as device.py chooses
    "tiled": KernelPath(
        torch.bfloat16, "int4 kernel for few rows, expanded to bfloat16 for many", TiledLinear
    ),
    "half": KernelPath(torch.float16, "float16 weights", _floats(torch.float16)),
    "expanded": KernelPath(torch.float16, "expanded to float16 for each product", ExpandedLinear),
}
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From q (T, heads, D), k and v (T, kv_heads, D), float32 or the path's type, to (T, heads * D)."""


class Model:
    """Weights and caches of one sequence. slots: how many positions the caches hold."""

    def __init__(
        self, files: Files, *, slots: int, positions: int, kernel_path: str, device: torch.device
    ) -> None:
        if kernel_path not in KERNEL_PATHS:
            raise UsageError(
                f"unknown kernel path {kernel_path!r}", expected=f"one of {list(KERNEL_PATHS)}"
            )
        self.config, self.kernel_path, self.device = files.config, KERNEL_PATHS[kernel_path], device
        self.type, config = self.kernel_path.type, files.config
        shape = (config.vocab, config.hidden)
        self.embedding = files.read("model.embed_tokens.weight", shape).to(device)
        self.layers = [_Layer(self, files, layer) for layer in range(config.layers)]
        self.norm = _Norm(files, "model.norm", device)
        head = self.embedding
        if not config.tied:
            head = files.read("lm_head.weight", shape).to(device)
        self.head = self._head(head)
        size = (2, config.kv_heads, slots, config.head_dim)
        self.cache = [
            torch.zeros(size, dtype=self.type, device=device) for _ in range(config.layers)
        ]
        tables = rope_tables(positions, config.head_dim, config.rope_theta)
        self.cos, self.sin = (torch.from_numpy(table)[:, None].to(device) for table in tables)

    def linear(self, codes: Codes) -> Linear:
        """A linear of the layers, as this kernel path computes it."""
        return self.kernel_path.linear(codes.to(self.device), self.config.bits)

    def _head(self, weights: torch.Tensor) -> Linear:
        bits = self.config.head_bits
        if bits == 16:
            return FloatLinear(weights.to(self.type))
        if bits == 8 and self.kernel_path is KERNEL_PATHS["packed"]:
            return ByteLinear(weights)  # what CUDA has for it is slow: one thread for each output
        return self.kernel_path.linear(_rounded(weights, bits), bits)

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights, the embedding as it is mapped or held included."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        total = sum(linear.nbytes for linear in [*linears, self.head])
        shared = getattr(self.head, "weights", None) is self.embedding
        return total if shared else total + self.embedding.nbytes

    @torch.inference_mode()
    def forward(
        self, ids: torch.Tensor, position: int, seen: range, first: int, last_only: bool
    ) -> torch.Tensor:
        """Logits float32 (1 or T, vocab) of `ids`, int64 (T,), at positions from `position` on.

        Their keys and values are written to the last T slots of `seen`, the slots that the first of
        them sees and all after those; `first` is the position in slot 0.
        """
        state = self.embedding[ids.to(self.device)].float()
        span = slice(position, position + len(ids))
        mask = self._mask(position, seen, first, len(ids))
        attend = [functools.partial(attend_seen, cache, seen, mask) for cache in self.cache]
        state = self.through_layers(state, (self.cos[span], self.sin[span]), attend)
        return self.logits(state[-1:] if last_only else state)

    def through_layers(
        self, state: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], attend: Sequence[Attend]
    ) -> torch.Tensor:
        """The state (T, hidden), float32, after all layers; turn: RoPE's factors, (T, 1, D / 2)."""
        for layer, look in zip(self.layers, attend, strict=True):
            state = layer.forward(state, turn, look)
        return state

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """float32 (T, vocab) of what the last layer leaves."""
        return self.head(self.norm(state).to(self.type)).float()

    def _mask(self, position: int, seen: range, first: int, count: int) -> torch.Tensor | None:
        """What each query may see, additive (group * T, keys); None where it is everything."""
        if count == 1:
            return None
        queries = torch.arange(position, position + count, device=self.device)
        keys = torch.arange(first + seen.start, first + seen.stop, device=self.device)
        return self.visible(queries, keys, self.type)

    def visible(self, queries: torch.Tensor, keys: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        """From positions (T,) and (keys,): 0 where a query sees a key and -inf where it does not.

        (group * T, keys) of type `kind`: query heads that share a key are rows of one product.
        """
        distance = queries[:, None] - keys
        hidden = distance < 0
        if self.config.window_tokens is not None:
            hidden |= distance >= self.config.window_tokens
        mask = torch.zeros_like(hidden, dtype=kind).masked_fill_(hidden, -torch.inf)
        return mask.repeat(self.config.heads // self.config.kv_heads, 1)


def attend_seen(
    cache: torch.Tensor,
    seen: range,
    mask: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """As Attend, over the slots `seen`; k and v are written to the last of them."""
    new = slice(seen.stop - len(q), seen.stop)
    cache[0, :, new] = k.transpose(0, 1)
    cache[1, :, new] = v.transpose(0, 1)
    keys, values = cache[:, None, :, seen.start : seen.stop]  # each (1, kv_heads, keys, D)
    rows = as_rows(q.to(cache.dtype), len(keys[0]))[None]
    return from_rows(F.scaled_dot_product_attention(rows, keys, values, mask)[0], len(q))


def as_rows(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(T, heads, D) to (kv_heads, group * T, D): those that share a key beside each other."""
    count, _, width = q.shape
    return q.view(count, kv_heads, -1, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)


def from_rows(mixed: torch.Tensor, count: int) -> torch.Tensor:
    """(kv_heads, group * T, D) back to (T, heads * D)."""
    kv_heads, _, width = mixed.shape
    return mixed.view(kv_heads, -1, count, width).permute(2, 0, 1, 3).reshape(count, -1)


def _rounded(weights: torch.Tensor, bits: int) -> Codes:
    """Codes of the head (vocab, hidden), rounded to nearest in groups.

    4 bits: small groups, each from its least to its greatest weight. 8: the largest, around zero.
    """
    vocab, hidden = weights.shape
    group = HEAD_GROUP if bits == 4 else max(g for g in GROUPS if hidden % g == 0)
    blocks = weights.float().view(vocab, -1, group)
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    if bits == 8:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    zeros = (-low / scales).round()
    codes = (blocks / scales[:, :, None]).round() + zeros[:, :, None]
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8).view(vocab, -1)
    return Codes(codes, scales, zeros, torch.zeros(vocab, device=weights.device), None)


class _Norm:
    """LayerNorm in float32."""

    def __init__(self, files: Files, name: str, device: torch.device) -> None:
        self.shape, self.eps = (files.config.hidden,), files.config.norm_eps
        self.weight, self.bias = (
            files.read(f"{name}.{k}", self.shape).float().to(device) for k in ("weight", "bias")
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
        self.before_attention = _Norm(files, f"{at}.input_layernorm", model.device)
        self.before_mlp = _Norm(files, f"{at}.post_attention_layernorm", model.device)

    def forward(
        self, state: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], attend: Attend
    ) -> torch.Tensor:
        """Attention and feed-forward, each added to the state (T, hidden)."""
        config = self.config
        x = self.qkv(self.before_attention(state).to(self.type))
        x = x.view(len(state), config.heads + 2 * config.kv_heads, config.head_dim)
        q, k, v = torch.split(x, [config.heads, config.kv_heads, config.kv_heads], 1)
        mixed = attend(turned(q, *turn), turned(k, *turn), v)
        state = state + self.out(mixed.to(self.type)).float()
        x = self.up(self.before_mlp(state).to(self.type))
        x = F.gelu(x, approximate="tanh")
        return state + self.down(x.to(self.type)).float()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of (T, heads, D) in the NeoX layout, in float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
