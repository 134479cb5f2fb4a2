"""What a run of inputs came to, for one target: added up, and shown as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace


@dataclass
class Figures:
    """guided: inputs that coverage has led to. findings: kind to the file that shows it.

    known: inputs whose finding is in the corpus already. peak_bytes: of the whole process.
    """

    target: str
    inputs: int = 0
    guided: int = 0
    accepted: int = 0
    refused: int = 0
    known: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: Figures) -> Figures:
        """Two runs of one target."""
        return Figures(
            self.target,
            self.inputs + other.inputs,
            self.guided + other.guided,
            self.accepted + other.accepted,
            self.refused + other.refused,
            self.known + other.known,
            max(self.slowest_s, other.slowest_s),
            max(self.peak_bytes, other.peak_bytes),
            self.seconds + other.seconds,
            self.findings | other.findings,
        )

    @property
    def inputs_per_s(self) -> float:
        """Of one process."""
        return self.inputs / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return asdict(self) | {"inputs_per_s": self.inputs_per_s}


def table(figures: Iterable[Figures]) -> str:
    """For a reader; also right as Markdown."""
    head = "| target | inputs | guided | accepted | refused | findings | slowest, s | inputs/s |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|---:|"]
    total = Figures("all")
    for f in sorted(figures, key=lambda f: f.target):
        rows.append(_row(f))
        total += replace(f, findings={f"{f.target} {kind}": n for kind, n in f.findings.items()})
    return "\n".join([*rows, _row(total)])


def _row(f: Figures) -> str:
    counts = " | ".join(f"{n:,}" for n in (f.inputs, f.guided, f.accepted, f.refused))
    found = len(f.findings) + f.known
    return f"| {f.target} | {counts} | {found} | {f.slowest_s:.2f} | {f.inputs_per_s:,.0f} |"
