"""What a run of the pipeline is asked for; each stage takes no more than it needs.

Knows the fields and what they mean. Chooses nothing, reads no file and looks at no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packager.core.records import Budget, Device
from runtimes.contract import BackendOptions
from runtimes.host.limits import default_threads


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How much text quality is judged on. Guessed: enough to tell recipes apart, and no more.

    text_tokens bounds all blocks inside the window together, block_tokens each of them. The
    nearest characters of a sample's prefix and suffix are given, and at most middle_tokens filled
    in.
    """

    text_tokens: int = 8192
    block_tokens: int = 1024
    samples_per_kind: int = 20
    prefix_characters: int = 1000
    suffix_characters: int = 400
    middle_tokens: int = 48
    seed: int = 0


DEFAULT_SAMPLE_SIZE = SampleSize()


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """What converting needs: where output and its records go, and what calibrates each format.

    calibrations: by format, the file or folder that its calibration reads.
    """

    out: Path
    calibrations: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings(ConvertSettings):
    """What judging an artifact needs too: how it is opened, and which text it is judged on.

    held_out: the folder of sources that quality is judged on; starpack's own where None.
    """

    context_tokens: int
    threads: int = field(default_factory=default_threads)
    provider: str = "cpu"
    gpu_layers: int = 0
    held_out: Path | None = None
    sample_size: SampleSize = DEFAULT_SAMPLE_SIZE

    def options(self) -> BackendOptions:
        """How artifacts are opened."""
        return BackendOptions(self.context_tokens, self.threads, self.provider, self.gpu_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings(JudgeSettings):
    """What measuring, selecting and packing need too: a device, and what it must keep to.

    timed_here: whether `device` is this machine; if not, memory and times are estimates.
    prefer, accept: see packager.selection.selector.
    """

    device: Device
    timed_here: bool
    budget: Budget = field(default_factory=Budget)
    prefer: str = "quality"
    accept: frozenset[str] = frozenset()
