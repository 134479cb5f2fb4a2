"""Reports to render: made up and seeded, shaped like real ones, and the edges of what may come."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from packager.core.records import Geometry, Interval
from packager.report.page import (
    BudgetLimit,
    Comparison,
    ProofCurve,
    Reason,
    ReportData,
    ReportRow,
    key_value_curves,
)
from runtimes.contract import Window

GIB = 1 << 30
WINDOW_TOKENS = 4096
GEOMETRY = Geometry(30, 24, 2, 128, 3072, 12288, 49152, 1e6, 1e-5, True)
HOSTILE = "</title><script>alert(1)</script>\" onload='x' & <b>\u202egnp.exe\x00\ud800"
# variant: weights in GiB, milliseconds per token and of the first, divergence in nats
VARIANTS = {
    "gguf-Q4_K_M": (1.76, 7.1, 151, 2.1e-2),
    "gguf-Q5_K_M": (2.05, 8.3, 158, 8.2e-3),
    "gguf-Q6_K": (2.32, 9.2, 163, 2.9e-3),
    "gguf-Q8_0": (3.00, 11.4, 171, 6.4e-4),
    "gguf-F16": (5.64, 20.9, 240, 1.2e-5),
    "gguf-IQ4_XS": (1.61, 7.4, 166, 3.4e-2),
    "gptq-w4g128": (1.68, 6.6, 122, 2.6e-2),
    "gptq-w8g128": (3.02, 10.8, 131, 7.1e-4),
    "onnx-int4-g32-head4": (1.83, 7.9, 148, 1.8e-2),
    "onnx-int8": (3.06, 12.6, 160, 1.4e-2),
}


def interval(middle: float, share: float) -> Interval:
    """`middle`, and that share of it to both sides."""
    return Interval(middle * (1 - share), middle, middle * (1 + share))


def row(name: str, *, evidence: str = "measured here", chosen: str = "gguf-Q6_K") -> ReportRow:
    """One of VARIANTS, on a card of 4 GiB with 800 ms for a completion."""
    weights, token_ms, first_ms, nats = VARIANTS[name]
    share = 0.0 if evidence == "measured here" else 0.1
    memory = interval((weights + 0.62) * GIB, share / 2)
    first, token = interval(first_ms / 1e3, share), interval(token_ms / 1e3, share)
    completion = interval(first.middle + 63 * token.middle, share)
    reasons = []
    if memory.high > 3.6 * GIB:
        over = f"{(memory.high - 3.6 * GIB) / GIB:.2f} GiB"
        reasons.append(Reason("memory", over, "gguf-Q6_K, or a context of 2,048 tokens"))
    if completion.high > 0.8:
        over = f"{1e3 * (completion.high - 0.8):.0f} ms"
        reasons.append(Reason("completion p50", over, "48 new tokens in place of 64"))
    return ReportRow(
        variant=name,
        chosen=name == chosen,
        feasible=not reasons,
        evidence=evidence,
        memory_bytes=memory,
        first_token_s=first,
        per_token_s=token,
        completion_s=completion,
        divergence_nats=nats,
        agreement=1 - 2.2 * math.sqrt(nats) / 4,
        reasons=tuple(reasons),
    )


def proof(name: str, nats: float, positions: int = 6144) -> ProofCurve:
    """A curve whose noise is that of single positions; full attention differs past the window."""
    rng = random.Random(name)

    def noisy(level: float) -> float:
        return level * rng.lognormvariate(-0.5, 1)

    kept = tuple(noisy(nats) for _ in range(positions))
    full = tuple(
        None if p < WINDOW_TOKENS else noisy(nats + 0.3 * (1 - WINDOW_TOKENS / (p + 200)))
        for p in range(positions)
    )
    return ProofCurve(name, WINDOW_TOKENS, tuple(range(positions)), kept, full, "holds")


def full_report() -> ReportData:
    """Everything there is to show."""
    rows = tuple(row(name) for name in VARIANTS)
    comparisons = [
        Comparison(
            each.variant, quantity, interval(getattr(each, quantity).middle * off, 0.1), found
        )
        for each, off in zip(rows[:4], (1.04, 0.93, 1.18, 1.01), strict=True)
        for quantity in ("memory_bytes", "per_token_s")
        for found in [getattr(each, quantity).middle]
    ]
    return ReportData(
        title="StarCoder2-3B on an RTX 3050 4 GB",
        date="2026-11-25",
        model="starcoder2-3b",
        device_title="NVIDIA GeForce RTX 3050 4 GB",
        budget_name="relaxed",
        workload="1,024 prompt tokens, 64 new tokens",
        limits=(
            BudgetLimit("memory_bytes", 3.6 * GIB),
            BudgetLimit("first_token_s", 0.2, "p50"),
            BudgetLimit("first_token_s", 0.4, "p90"),
            BudgetLimit("completion_s", 0.8, "p50"),
            BudgetLimit("completion_s", 1.2, "p90"),
        ),
        candidates=rows,
        proofs=tuple(proof(name, VARIANTS[name][3]) for name in list(VARIANTS)[:4]),
        memory_curves=key_value_curves(
            "starcoder2-3b", GEOMETRY, Window(WINDOW_TOKENS), [1024 << n for n in range(7)]
        ),
        comparisons=tuple(comparisons),
        notes=("The device was idle and at its usual clocks.", "Prompts are held-out Python."),
        warnings=("Uncalibrated estimates were accepted (--accept-uncalibrated).",),
        versions=(("starpack", "0.1.0"), ("llama-cpp-python", "0.3.36+starpack2")),
        provenance=(("checkpoint", "ab" * 32), ("gguf-Q6_K.gguf", "cd" * 32)),
    )


def bare(**more: object) -> ReportData:
    """A report with only what it must have, and what is given."""
    return ReportData(title="Plan", date="2026-11-25", model="", device_title="Tesla T4", **more)


def plan_only() -> ReportData:
    """Nothing was measured: estimates with wide intervals, and no quality."""
    rows = tuple(
        replace(
            row(name, evidence="specification", chosen="gguf-Q5_K_M"),
            divergence_nats=None,
            agreement=None,
        )
        for name in VARIANTS
    )
    return bare(
        candidates=rows, budget_name="inline", limits=(BudgetLimit("memory_bytes", 80 * GIB),)
    )


def nothing_fits() -> ReportData:
    """A card of 2 GiB."""
    need = [Reason("memory", "0.31 GiB", "gguf-IQ4_XS"), Reason("first token p50", "20 ms", "")]
    rows = [
        replace(row(name), chosen=False, feasible=False, reasons=tuple(need[: 1 + n % 2]))
        for n, name in enumerate(VARIANTS)
    ]
    return bare(candidates=tuple(rows), budget_name="inline")


def one_candidate() -> ReportData:
    """A single point, exact."""
    return bare(candidates=(row("gguf-Q6_K"),))


def many(count: int = 200) -> ReportData:
    """So many candidates that not every one can have a label."""
    rng, names = random.Random(7), list(VARIANTS)
    rows = []
    for n in range(count):
        base, size = row(names[n % 10], evidence="specification", chosen=""), rng.uniform(0.6, 6)
        rows.append(
            replace(
                base,
                variant=f"starcoder2-{(3, 7, 15)[n % 3]}b {base.variant}-{n}",
                chosen=n == 42,
                feasible=size < 3,
                reasons=base.reasons if size >= 3 else (),
                memory_bytes=interval(base.memory_bytes.middle * size, 0.03),
                completion_s=interval(
                    base.completion_s.middle * size * rng.uniform(0.7, 1.4), 0.15
                ),
            )
        )
    return bare(
        candidates=tuple(rows), proofs=tuple(proof(f"artifact {n}", 1e-3, 600) for n in range(20))
    )


def unknowns() -> ReportData:
    """Zeros, None and numbers that are none."""
    zero, endless = Interval(0, 0, 0), Interval(0, math.inf, math.nan)
    rows = (
        ReportRow("zero", False, True, "measured here", zero, zero, zero, zero, 0.0, 0.0),
        ReportRow("none", False, False, "measured here"),
        ReportRow(
            "endless", False, False, "", endless, endless, endless, endless, math.nan, math.inf
        ),
    )
    return bare(
        candidates=rows,
        limits=(BudgetLimit("memory_bytes", 0), BudgetLimit("context_tokens", 16384)),
        proofs=(
            ProofCurve(
                "exact", 8, tuple(range(16)), (0.0,) * 16, (None,) * 8 + (0.1,) * 8, "holds"
            ),
            ProofCurve("full attention", None, (0, 1), (1e-3, math.nan)),
            ProofCurve("empty", 8, (), ()),
        ),
        comparisons=(
            Comparison("zero", "memory_bytes", zero, 0),
            Comparison("far", "load_s", interval(9.0, 0.1), 1.0),
        ),
        memory_curves=key_value_curves("full", GEOMETRY, Window(None), [4096]),
    )


def hostile() -> ReportData:
    """Every text that comes from outside tries to break out, or is very long."""
    long = "x" * 300
    data = full_report()
    return replace(
        data,
        title=HOSTILE,
        model=HOSTILE,
        device_title=HOSTILE,
        budget_name=HOSTILE,
        workload=HOSTILE,
        candidates=(
            replace(
                data.candidates[0], variant=HOSTILE, evidence=HOSTILE, quality_evidence=HOSTILE
            ),
            replace(data.candidates[2], variant=long),
            replace(data.candidates[3], variant=long, reasons=(Reason(HOSTILE, long, HOSTILE),)),
        ),
        proofs=(replace(data.proofs[0], name=HOSTILE, verdict=HOSTILE),),
        memory_curves=tuple(replace(c, name=HOSTILE) for c in data.memory_curves),
        comparisons=(replace(data.comparisons[0], artifact=long),),
        notes=(HOSTILE, long),
        warnings=(HOSTILE,),
        versions=((HOSTILE, HOSTILE),),
        provenance=((long, HOSTILE),),
    )


REPORTS = {
    "full": full_report,
    "empty": bare,
    "plan": plan_only,
    "nothing": nothing_fits,
    "one": one_candidate,
    "many": many,
    "unknowns": unknowns,
    "hostile": hostile,
}
