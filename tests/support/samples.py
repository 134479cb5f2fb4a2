"""A measurement with every field set, for tests of what is done with one."""

from __future__ import annotations

from packager.core.records import Estimate, Interval, MemoryParts, Variant, Workload
from packager.core.results import (
    CurvePoint,
    FimScore,
    Measurement,
    Quality,
    Speed,
    TextScore,
    WindowProof,
)
from runtimes.backends.timing import Steps

GIB = 1 << 30
VARIANT = Variant("gguf", "Q4_K_M", 4.8, None)
WORKLOAD = Workload(1024, 24, 768)
PROOF = WindowProof(
    window_tokens=256,
    engine_window="256",
    positions=768,
    inside_nats=0.08,
    past_nats=0.05,
    from_full_nats=3.1,
    agree_inside=0.93,
    agree_past=0.94,
    reach_tokens=1530,
    at_reach=0.5,
    beyond_reach=0.0,
    verdict="holds",
    curve=(CurvePoint(0, 0.08, None), CurvePoint(256, 0.05, 3.1)),
)
SCORE = TextScore(8000, 9.1, 9.0, 0.05, 0.6, Interval(0.91, 0.92, 0.93))
QUALITY = Quality(
    text_sha256="1" * 64,
    inside=SCORE,
    past=TextScore(2000, 8.1, 8.0, 0.06, 0.7, Interval(0.90, 0.92, 0.94)),
    fim=(FimScore("single-line", 20, 0.1, 0.15, 0.8, 0.5),),
)
SPEED = Speed(
    threads=2,
    context_tokens=4096,
    workload=WORKLOAD,
    load_s=0.1,
    cold_s=(0.4, 0.5),
    warm_s=(0.1, 0.2),
    steps=(Steps(0, (0.01, 0.02)), Steps(1024, (0.03, 0.05))),
    weights_bytes=2 * GIB,
    key_values_bytes=GIB // 4,
    compute_bytes=GIB // 8,
    peak_memory_bytes=3 * GIB,
    device_memory_bytes=None,
    energy_j=None,
)
ESTIMATE = Estimate(
    model="demo",
    variant=VARIANT,
    device="card",
    context_tokens=4096,
    parts=MemoryParts(2 * GIB, GIB // 4, GIB // 8, 0, GIB // 8),
    memory_bytes=Interval(2.4 * GIB, 2.5 * GIB, 2.6 * GIB),
    first_token_s=Interval(0.08, 0.1, 0.15),
    per_token_s=Interval(0.02, 0.03, 0.04),
    completion_s=Interval(0.5, 0.8, 1.1),
    evidence="specification",
    unreliable="a CPU's figures depend on the machine",
)
MEASUREMENT = Measurement(
    variant=VARIANT,
    model="demo",
    artifact_sha256="2" * 64,
    artifact_bytes=2 * GIB,
    device="card",
    proof=PROOF,
    quality=QUALITY,
    speed=SPEED,
    estimate=ESTIMATE,
)
