"""A record as a person reads it: one table for each kind of finding, ratios first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Finding = dict[str, Any]
GIB = 1 << 30
BASE_KERNEL = "torch-int4"  # what the others are compared with


def tables(record: dict[str, Any]) -> str:
    """All of a record in Markdown."""
    findings = [f for part in record["parts"] for f in part["findings"]]
    facts = record["facts"]
    capability = facts["compute_capability"] or "none"
    lines = [
        f"{facts['name']}, compute capability {capability}, driver {facts['driver'] or 'unknown'}",
        "",
        *_parts(record["parts"]),
    ]
    for kind, show in SHOWN.items():
        chosen = [f for f in findings if f["kind"] == kind]
        if chosen:
            lines += ["", *show(chosen)]
    return "\n".join(lines)


def _parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (p["part"], p["status"], f"{p['seconds']:.0f} s", p["what"] + _then(p["remedy"]))
        for p in parts
    ]
    return markdown(("part", "status", "took", "why"), rows)


def _exactness(findings: list[Finding]) -> list[str]:
    rows = [
        (
            "exact" if f["exact"] else "NOT EXACT", _ratio(f["far_rms"], f["inside_rms"]),
            f["engine"], f["recipe"], f["path"], f"{f['ids_per_call']}, {f['mode']}",
            *(f"{f[key]:.2e}" for key in ("inside_rms", "at_rms", "past_rms", "far_rms")),
            f"{f['full_attention_rms']:.2e}", f"{f['beyond_reach']}",
        )
        for f in findings
    ]  # fmt: skip
    heads = ("window", "far / inside", "engine", "recipe", "path", "ids a call", "inside", "at",
             "past", "far", "if it were lost", "beyond reach")  # fmt: skip
    return markdown(heads, rows)


def _speed(findings: list[Finding]) -> list[str]:
    rows = []
    for f in findings:
        prompt = statistics.median(f["prompt_s"])
        steps = {step["mode"]: step["p50_s"] for step in f["steps"]}
        best = min(steps.values())
        graphs = _ratio(steps.get("no graphs"), steps.get("graphs"))
        rows.append(
            (
                _ratio(prompt, _middle(f["prompt_estimated_s"])),
                _ratio(best, _middle(f["token_estimated_s"])), graphs, f["engine"],
                f"{f['model']} {f['recipe']}", f"{f['layers']} of {f['whole_layers']}",
                f["prompt_tokens"], f"{f['prompt_tokens'] / prompt:.0f}", f"{1 / best:.1f}",
                ", ".join(f"{mode} {1e3 * s:.2f}" for mode, s in steps.items()),
            )
        )  # fmt: skip
    heads = ("prompt / estimate", "step / estimate", "no graphs / graphs", "engine", "model",
             "layers", "prompt", "prompt tokens/s", "tokens/s", "step, ms")  # fmt: skip
    return markdown(heads, rows)


def _memory(findings: list[Finding]) -> list[str]:
    rows = [
        (
            _ratio(f["measured_bytes"] or None, _middle(f["estimated_bytes"])), f["engine"],
            f"{f['model']} {f['recipe']}", f"{f['layers']} of {f['whole_layers']}",
            f["context_tokens"],
            *(f"{f[key] / GIB:.2f}" if f[key] else "unknown" for key in (
                "measured_bytes", "weights_bytes", "key_values_bytes", "compute_bytes")),
        )
        for f in findings
    ]  # fmt: skip
    heads = ("measured / estimate", "engine", "model", "layers", "context", "GiB", "weights",
             "keys and values", "other")  # fmt: skip
    return markdown(heads, rows)


def _kernels(findings: list[Finding]) -> list[str]:
    base = {(f["model"], f["rows"]): f["layer_s"] for f in findings if f["kernel"] == BASE_KERNEL}
    rows = [
        (
            _ratio(f["layer_s"], base.get((f["model"], f["rows"]))), f["kernel"], f["model"],
            f["rows"], f"{1e3 * f['layer_s']:.3f}", "graph" if f["captured"] else "as it is",
            f"{f['error']:.1e}",
        )
        for f in findings
    ]  # fmt: skip
    heads = (f"of {BASE_KERNEL}", "kernel", "model", "rows", "layer, ms", "timed", "error")
    return markdown(heads, rows)


def _absent(findings: list[Finding]) -> list[str]:
    rows = [
        (f["name"], "failed" if f["failed"] else "not run", f["what"] + _then(f["remedy"]))
        for f in findings
    ]
    return markdown(("what", "status", "why"), rows)


SHOWN: dict[str, Callable[[list[Finding]], list[str]]] = {
    "exactness": _exactness,
    "speed": _speed,
    "memory": _memory,
    "kernel": _kernels,
    "not run": _absent,
}


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table; what would break out of a cell is replaced."""
    cells = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _ratio(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2f}"


def _middle(interval: dict[str, float] | None) -> float | None:
    return None if interval is None else interval["middle"]


def _then(remedy: str) -> str:
    return f". Remedy: {remedy}" if remedy else ""
