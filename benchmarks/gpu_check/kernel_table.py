"""Kernels for 4-bit weights: where each runs, as its own source or documentation says.

None of it was tried here. GPTQModel's are those of 7.6.0 (gptqmodel/utils/{marlin,machete,
swordfish}.py, nn_modules/qlinear/*.py), read and not run.
"""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]
# What our users have, and two newer ones: T4 and RTX 20; A100; RTX 30 and A10; RTX 40 and L4; H100;
# RTX 50.
ASKED = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel. least: the oldest compute capability. only: the sole ones, where there are such.

    owner: "ours" (in our backend's path), "torch", "gptqmodel" or another engine. why: where that
    is said. note: what else decides. unsure: where it may run, though nobody promises it.
    """

    name: str
    owner: str
    least: Capability
    why: str
    only: tuple[Capability, ...] = ()
    note: str = ""
    unsure: tuple[Capability, ...] = ()

    def runs_on(self, capability: Capability) -> bool:
        """Whether it should run there."""
        return capability in self.only if self.only else capability >= self.least

    @property
    def where(self) -> str:
        """For a reader."""
        if self.only:
            return ", ".join(_dotted(one) for one in self.only) + " alone"
        return f"{_dotted(self.least)} and newer"


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "torch-int4", "ours", (8, 0),
            "torch, aten/src/ATen/native/cuda/int4mm.cu: bfloat16 tensor cores",
            note="ours for up to 128 rows",
        ),
        Kernel(
            "expanded-bfloat16", "ours", (8, 0), "bfloat16 has tensor cores from there on",
            note="ours for more rows; reads torch-int4's copy of the weights",
        ),
        Kernel(
            "expanded-float16", "ours", (7, 0), "float16 has tensor cores from there on",
            note="ours before 8.0, where float16 does not fit",
        ),
        Kernel(
            "float16", "ours", (7, 0), "the same", note="ours before 8.0; four times the memory"
        ),
        Kernel("bfloat16", "torch", (8, 0), "not quantised, to compare with"),
        Kernel(
            "GPTQ_TRITON", "gptqmodel", (7, 5),
            "Triton's own list begins at 8.0 (triton-lang/triton#5066); this kernel only expands, "
            "without what was dropped for 7.5, so it is tried there",
            note="comes with CUDA builds of torch; compiled when it is first used",
            unsure=((7, 5),),
        ),
        Kernel(
            "GPTQ_MARLIN", "gptqmodel", (7, 5), "utils/marlin.py",
            note="7.5 in float16 alone; nvcc compiles it when it is first used",
        ),
        Kernel(
            "GPTQ_EXLLAMA_V2", "gptqmodel", (7, 0),
            "its source states no limit; float16 tensor cores are taken for one",
            note="nvcc compiles it when it is first used",
        ),
        Kernel("GPTQ_TORCH", "gptqmodel", (7, 0), "torch's operations alone"),
        Kernel("GPTQ_MACHETE", "gptqmodel", (9, 0), "utils/machete.py", only=((9, 0),)),
        Kernel(
            "GPTQ_SWORDFISH", "gptqmodel", (10, 0), "utils/swordfish.py",
            only=((10, 0), (10, 3), (11, 0)),
        ),
        Kernel(
            "llama.cpp CUDA", "llama.cpp", (7, 5),
            "packager/engine/build.py builds for 7.5 to 12.0",
            note="on 7.5 and newer on integer tensor cores",
        ),
        Kernel(
            "ONNX MatMulNBits", "onnxruntime", (7, 5),
            "the wheel has code for 7.5, 8.0, 8.6, 8.9, 9.0 and 12.0, and none to translate",
            only=ASKED,
            note="4 bits in blocks of 32 without zero points, as our -fp16 recipes have them",
        ),
    )
}  # fmt: skip


def table() -> str:
    """Every kernel against the compute capabilities that are asked for, in Markdown."""
    lines = ["| kernel | of | " + " | ".join(map(_dotted, ASKED)) + " | runs on | says |"]
    lines.append("|---" * (len(ASKED) + 4) + "|")
    for kernel in KERNELS.values():
        marks = [_mark(kernel, one) for one in ASKED]
        said = f"{kernel.why}; {kernel.note}" if kernel.note else kernel.why
        lines.append(
            f"| {kernel.name} | {kernel.owner} | {' | '.join(marks)} | {kernel.where} | {said} |"
        )
    return "\n".join(lines)


def _mark(kernel: Kernel, capability: Capability) -> str:
    if capability in kernel.unsure:
        return "perhaps"
    return "yes" if kernel.runs_on(capability) else "no"


def _dotted(capability: Capability) -> str:
    return "{}.{}".format(*capability)
