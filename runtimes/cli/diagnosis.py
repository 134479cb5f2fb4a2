"""What `doctor` concludes: from the machine's facts and a short measure to a verdict.

Pure: it opens nothing and prints nothing. The baseline is what the manifest says was measured where
the bundle was made (runtimes/bundle/baseline.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtimes.backends.timing import Prompt, Steps
from runtimes.bundle.baseline import Baseline
from runtimes.host.cpu import read_processor

Verdict = Literal["within baseline", "slower", "no baseline", "does not fit", "wrong device"]
"""no baseline: it runs, and the manifest has no figure to compare with."""

SLOWER = 1.5  # guessed: what a second program on the machine and a warm processor may cost
NVIDIA = Path("/proc/driver/nvidia/version")
# Instruction sets that the engines have kernels for, from the newest to the oldest, x86 then Arm.
INSTRUCTIONS = (
    "amx_int8 amx_bf16 avx512_bf16 avx512_vnni avx512bw avx512f avx_vnni avx2 fma f16c avx sse4_2 "
    "sve2 sve i8mm bf16 asimddp asimd"
).split()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure here and in the baseline, in seconds; `ratio` above 1 is slower."""

    what: str
    here_s: float
    baseline_s: float

    @property
    def ratio(self) -> float:
        return self.here_s / self.baseline_s if self.baseline_s > 0 else 1.0

    @property
    def text(self) -> str:
        """For a reader."""
        return f"{self.what}: {self.here_s:.3g} s here, {self.baseline_s:.3g} s in the baseline"


def compare(baseline: Baseline, prompt: Prompt, steps: Steps) -> list[Comparison]:
    """What can be compared. A shorter prompt is held to its fraction of the baseline."""
    found = []
    if baseline.fastest_prompt_s is not None and baseline.prompt_tokens:
        expected_s = baseline.fastest_prompt_s * prompt.tokens / baseline.prompt_tokens
        found.append(Comparison(f"a prompt of {prompt.tokens} tokens", prompt.seconds, expected_s))
    if baseline.per_token_s is not None:
        what = f"each token after {steps.depth_tokens}"
        found.append(Comparison(what, steps.p50_s, baseline.per_token_s))
    return found


def verdict_of(comparisons: list[Comparison]) -> Verdict:
    """Of a model that runs."""
    if not comparisons:
        return "no baseline"
    return "slower" if any(c.ratio > SLOWER for c in comparisons) else "within baseline"


def instruction_sets() -> list[str]:
    """Those of INSTRUCTIONS that this processor has, as Linux says; none where it does not."""
    flags = read_processor().flags
    return [name for name in INSTRUCTIONS if name in flags]


def gpu_driver() -> str:
    """The NVIDIA driver's own line on itself, or "none"."""
    try:
        lines = NVIDIA.read_text().splitlines()
    except OSError:
        return "none"
    return lines[0].removeprefix("NVRM version:").strip() if lines else "none"
