"""What `starpack estimate ...` and `starpack device calibrate` do: arguments in, a result out."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from packager import pipeline
from packager.checkpoint.reader import read_checkpoint
from packager.cli.result import CommandResult, columns
from packager.core.errors import QualityError, UsageError
from packager.core.package_data import profiles_folder
from packager.core.record_store import to_plain
from packager.core.records import Budget, Estimate, Interval, Progress
from packager.core.units import GIB
from packager.devices.budget import load_budget
from packager.devices.database import device_of, find_device, load_device, read_device
from packager.devices.detect import write_device
from packager.estimate.calibration_runs import take_samples
from packager.estimate.device_calibration import fit_calibration
from packager.estimate.estimator import DEFAULT_CONTEXT_TOKENS, estimate
from packager.estimate.models import Model, load_model, model_names
from packager.estimate.validate import GATES, MIN_RANKED, Errors, validate, write_fitted
from runtimes.backends.gguf.engine import engine_version
from runtimes.host.limits import default_threads

HEADINGS = ("variant", "memory GiB", "first token ms", "per token ms", "completion ms", "evidence")


def run(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Estimate what variants of a model take on a device, without any of its weights."""
    model, device = _model(arguments.model), load_device(arguments.device)
    budget = _within(load_budget(arguments.budget), model)
    variants = pipeline.plan(arguments.formats, arguments.head_bits)
    found = [
        estimate(model.name, model.geometry, model.window, variant, device, budget)
        for variant in variants
    ]
    work = budget.workload
    lines = [
        f"{model.name} on {device.title}, {found[0].context_tokens} tokens of context: a prompt of "
        f"{work.prompt_tokens}, {work.warm_prefix_tokens} of them in the cache, "
        f"and {work.output_tokens} more. Nine of ten lie within (low - high).",
        "",
        *columns([HEADINGS, *map(_cells, found)]),
    ]
    lines += [f"unsupported: {e.variant.name}: {e.unsupported}" for e in found if e.unsupported]
    lines += [f"not validated: {e.variant.name}: {e.unreliable}" for e in found if e.unreliable]
    lines += [f"note: {model.name}: {note}" for note in model.notes]
    return CommandResult(
        {"estimates": to_plain(found), "notes": list(model.notes)}, "\n".join(lines)
    )


def check(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Replay published measurements on devices that the fit has not seen (about 10 s)."""
    progress("validate", 0, 1)
    found = validate()
    progress("validate", 1, 1)
    if arguments.write:
        write_fitted(found.fitted)
    rows: list[tuple[str, ...]] = [("", "rows", "median", "p90", "bias", "at most")]
    rows += [_error_cells(name, e) for name, e in found.families.items()]
    rows += [("",) * 6]
    rows += [_error_cells(f"  {name}", e) for name, e in found.by_engine.items()]
    rows += [("",) * 6]
    rows += [_error_cells(f"  {name}", e) for name, e in found.by_device.items()]
    lines = [
        "absolute relative errors; constants fitted without the device of each row",
        "",
        *columns(rows),
        "",
        f"pairs on one device, more than 10 % apart, in the right order: {found.ranked:.1%} of "
        f"{found.pairs} (at least {MIN_RANKED:.0%})",
        *(f"failed: {failure}" for failure in found.failures),
    ]
    if arguments.write:
        lines.append("written: the constants, fitted on all rows, and the intervals")
    data = to_plain(found) | {"failures": found.failures}
    return CommandResult(data, "\n".join(lines), QualityError.exit_code if found.failures else 0)


def calibrate(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Time small models on this machine, and keep in a device's file what they show (a minute)."""
    file = find_device(arguments.device)
    if file.is_relative_to(profiles_folder()):
        raise UsageError(
            f"{arguments.device} is one of starpack's own devices",
            expected="the file of this very machine",
            remedy="write one with `starpack device detect --out FILE`, and name that",
        )
    data = read_device(file)
    device = device_of(data | {"calibration": None})
    samples = take_samples(device, arguments.threads or default_threads(), progress)
    today = datetime.now(UTC).date().isoformat()
    found = fit_calibration(samples, f"llama-cpp-python {engine_version()}", today)
    write_device(data | {"calibration": asdict(found)}, file)
    scale = (found.memory, found.arithmetic, found.launch)
    rows: list[tuple[str, ...]] = [("measured ms", "specification ms", "calibrated ms")]
    rows += [
        tuple(f"{1e3 * float(s):.2f}" for s in (x.seconds, x.expected.seconds(),
                                                x.expected.seconds(*scale)))
        for x in samples
    ]  # fmt: skip
    lines = [
        f"times the specification: memory {found.memory:.2f}, arithmetic {found.arithmetic:.2f}, "
        f"starting kernels {found.launch:.2f}",
        *columns(rows),
        f"written: {file}",
    ]
    return CommandResult({"file": str(file), "calibration": asdict(found)}, "\n".join(lines))


def _within(budget: Budget, model: Model) -> Budget:
    """Where the budget names no context: what the model was trained to, and the workload fits."""
    if budget.context_tokens is not None:
        return budget
    trained = min(DEFAULT_CONTEXT_TOKENS, model.context_tokens)
    work = budget.workload.prompt_tokens + budget.workload.output_tokens
    return replace(budget, context_tokens=max(trained, work))


def _model(wanted: str) -> Model:
    """A published model by name, or that of a checkpoint's folder."""
    if wanted in model_names():
        return load_model(wanted)
    if not Path(wanted).is_dir():
        raise UsageError(
            f"{wanted!r} is no model that starpack knows, and no folder",
            expected=f"one of {', '.join(model_names())}, or the folder of a checkpoint",
        )
    found = read_checkpoint(Path(wanted), hash_files=False)
    return Model(Path(wanted).name, found.geometry, found.window, found.context_tokens, ())


def _cells(found: Estimate) -> tuple[str, ...]:
    doubt = "unsupported, " if found.unsupported else "not validated, " if found.unreliable else ""
    return (
        found.variant.name,
        _ends(found.memory_bytes, 1 / GIB, 2),
        *(_ends(x, 1e3, 1) for x in (found.first_token_s, found.per_token_s)),
        _ends(found.completion_s, 1e3, 0),
        doubt + found.evidence,
    )


def _ends(interval: Interval, scale: float, places: int) -> str:
    low, middle, high = (
        f"{x * scale:.{places}f}" for x in (interval.low, interval.middle, interval.high)
    )
    return f"{middle} ({low} - {high})"


def _error_cells(name: str, errors: Errors) -> tuple[str, ...]:
    gate = GATES.get(name)
    allowed = "" if gate is None else ", ".join(f"{limit:.0%}" for limit in gate if limit)
    shares = (f"{errors.median:.1%}", f"{errors.p90:.1%}", f"{errors.bias:+.1%}")
    return (name, str(errors.rows), *shares, allowed)
