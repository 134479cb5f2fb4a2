"""Part kernels: torch's ways to multiply 4-bit weights, on the matrices of 3B and 7B.

All matrices of one layer, for several numbers of rows. There are as many copies of the layer as no
cache holds, and they are gone through in turns, as a model's layers are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu_check.engines import ENGINES
from benchmarks.gpu_check.kernel_table import KERNELS, Capability, Kernel
from benchmarks.gpu_check.product_times import ROWS, relative_error, series_s
from benchmarks.gpu_check.records import TOY, Job, Keep, KernelTime, Missing, NotRun
from benchmarks.gpu_check.trying import noting
from benchmarks.gpu_check.weights import SCALE, model_of
from packager.core.records import Geometry
from runtimes.backends.gptq.device import find_gpu
from runtimes.backends.gptq.files import Codes
from runtimes.backends.gptq.tiles import ExpandedLinear, TiledLinear, Tiles

GROUP = 128
CACHE_BYTES = 256 << 20  # guessed: beyond the caches of all cards but for a few


@dataclass(frozen=True, slots=True)
class Product:
    """A kernel of ours: packs codes, then multiplies rows of a type by them."""

    kernel: Kernel
    type: torch.dtype
    pack: Callable[[Codes], object]
    multiply: Callable[[object, torch.Tensor], torch.Tensor]
    bits: int = 4
    on_cpu: bool = True


def _tiled(multiply: Callable[[Tiles, torch.Tensor], torch.Tensor]) -> tuple[Callable, Callable]:
    def product(linear: TiledLinear, x: torch.Tensor) -> torch.Tensor:
        return multiply(linear.planes[0], x)[:, : linear.outputs] + linear.bias

    return lambda codes: TiledLinear(codes, 4), product


def _floats(kind: torch.dtype) -> tuple[Callable, Callable]:
    def pack(codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
        return codes.weights().to(kind), codes.bias.to(kind)

    return pack, lambda pair, x: F.linear(x, *pair)


PRODUCTS = (
    Product(KERNELS["torch-int4"], torch.bfloat16, *_tiled(Tiles.few), on_cpu=False),
    Product(KERNELS["expanded-bfloat16"], torch.bfloat16, *_tiled(Tiles.many), on_cpu=False),
    Product(
        KERNELS["expanded-float16"], torch.float16, lambda codes: ExpandedLinear(codes, 4),
        lambda linear, x: linear(x),
    ),
    Product(KERNELS["float16"], torch.float16, *_floats(torch.float16), bits=16),
    Product(KERNELS["bfloat16"], torch.bfloat16, *_floats(torch.bfloat16), bits=16),
)  # fmt: skip


def missing(job: Job) -> Missing | None:
    """What has to be here for this part and is not."""
    return ENGINES["gptq"].missing(job)


def run(job: Job, keep: Keep) -> None:
    """Every kernel that the device is new enough for; the others are kept as not run."""
    gpu = find_gpu() if job.provider == "cuda" else None
    device = torch.device("cpu") if gpu is None else gpu.device
    capability = None if gpu is None else gpu.capability
    torch.set_num_threads(job.threads)
    for name in (TOY,) if job.toy else ("3b", "7b"):
        geometry = model_of(name).geometry
        for product in PRODUCTS:
            with noting(keep, f"{product.kernel.name}, {name}"):
                absent = not_for(product.kernel, capability)
                if gpu is None and not product.on_cpu:
                    what = "torch packs these for its CUDA kernel alone"
                    absent = NotRun(product.kernel.name, what, "a GPU", failed=False)
                if absent is not None:
                    keep(absent)
                    continue
                for found in time_product(product, name, geometry, device, job.toy):
                    keep(found)


def not_for(kernel: Kernel, capability: Capability | None) -> NotRun | None:
    """Why a kernel does not run on the device; None where it should. capability: None on a CPU."""
    if capability is None or kernel.runs_on(capability):
        return None
    here = "{}.{}".format(*capability)
    what = f"the GPU has compute capability {here}, and it runs on {kernel.where}"
    return NotRun(kernel.name, what, f"a GPU of another kind ({kernel.why})", failed=False)


def shapes_of(geometry: Geometry) -> list[tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices as our backend has them: q, k and v are one."""
    hidden, wide = geometry.hidden, geometry.kv_heads * geometry.head_dim
    return [(hidden + 2 * wide, hidden), (hidden, hidden), (geometry.ffn, hidden),
            (hidden, geometry.ffn)]  # fmt: skip


def time_product(
    product: Product, name: str, geometry: Geometry, device: torch.device, toy: bool
) -> list[KernelTime]:
    """One kernel on one model's layer, for all numbers of rows."""
    shapes = shapes_of(geometry)
    layer_bytes = product.bits * sum(a * b for a, b in shapes) // 8
    copies = 2 if toy else max(2, CACHE_BYTES // layer_bytes + 1)
    random = torch.Generator().manual_seed(0)
    codes = [random_codes(*shape, random) for shape in shapes]
    layers = [[product.pack(one.to(device)) for one in codes] for _ in range(copies)]
    found = []
    for rows in ROWS[:2] if toy else ROWS:
        inputs = [
            torch.randn(rows, shape[1], generator=random).to(device, product.type)
            for shape in shapes
        ]
        calls = [
            (lambda packed=packed, x=x: product.multiply(packed, x))
            for layer in layers
            for packed, x in zip(layer, inputs, strict=True)
        ]
        with torch.inference_mode():
            seconds, captured = series_s(calls, device)
            error = relative_error(calls[1](), _wanted(codes[1], inputs[1]))
        found.append(KernelTime(product.kernel.name, name, rows, seconds / copies, captured, error))
    return found


def random_codes(outputs: int, inputs: int, random: torch.Generator) -> Codes:
    """Codes of 4 bits as a symmetric file has them, of a trained model's scale; on the CPU."""
    groups = inputs // GROUP
    return Codes(
        torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=random),
        (SCALE * (0.5 + torch.rand(outputs, groups, generator=random))).half().float(),
        torch.full((outputs, groups), 8.0),
        0.02 * torch.randn(outputs, generator=random),
        None,
    )


def _wanted(codes: Codes, x: torch.Tensor) -> torch.Tensor:
    """The product in float32 on the CPU."""
    return x.float().cpu() @ codes.weights().T + codes.bias
