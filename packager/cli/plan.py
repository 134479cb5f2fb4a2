"""`plan` and `matrix`: what would run where, before anything is converted. Prints nothing."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from packager import formats, pipeline
from packager.cli.formatting import selection_text
from packager.cli.result import CommandResult, columns
from packager.cli.settings import accepted
from packager.core.atomic import write_text
from packager.core.errors import SelectionError
from packager.core.record_store import to_plain
from packager.core.records import Budget, Device, Limit, Progress, Variant
from packager.core.results import Candidate, Selection
from packager.core.units import GIB, durations
from packager.devices.budget import load_budget
from packager.devices.database import list_devices, load_device
from packager.estimate.estimator import DEFAULT_CONTEXT_TOKENS, estimate
from packager.estimate.models import Model, load_model
from packager.selection.candidates import of_estimate
from packager.selection.selector import select

COLUMNS = (
    "device", "budget", "model", "variant", "memory_gib", "first_token", "per_token",
    "completion", "evidence", "reason",
)  # fmt: skip


def plan(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Choose a model and a recipe for a device from estimates alone: nothing is converted."""
    device, budget = load_device(arguments.device), load_budget(arguments.budget)
    selection = _select(_Planner(arguments), device, budget, arguments)
    return CommandResult(to_plain(selection), selection_text(selection, explain=arguments.explain))


def matrix(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Answer `plan` for every device and budget, in one table."""
    devices = list_devices() if arguments.devices == ["all"] else [
        load_device(name) for name in arguments.devices
    ]  # fmt: skip
    budgets = [load_budget(name) for name in arguments.budgets]
    planner, rows = _Planner(arguments), []
    for done, device in enumerate(devices):
        progress("plan", done, len(devices))
        rows += [_row(planner, device, budget, arguments) for budget in budgets]
    if arguments.csv is not None:
        write_text(arguments.csv, _csv(rows))
    return CommandResult({"rows": rows}, _table(rows))


class _Planner:
    """Estimated candidates: each model in each recipe."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.models: Sequence[Model] = [load_model(name) for name in arguments.models]
        self.variants: Sequence[Variant] = pipeline.plan(arguments.formats or _worth(), None)
        self.context = arguments.context

    def candidates(self, device: Device, budget: Budget) -> list[Candidate]:
        """Every model in every recipe, on a device."""
        return list(self._candidates(device, budget))

    def _candidates(self, device: Device, budget: Budget) -> Iterator[Candidate]:
        for model in self.models:
            wanted = self.context or budget.context_tokens or DEFAULT_CONTEXT_TOKENS
            context = min(wanted, model.context_tokens)
            for variant in self.variants:
                yield self._candidate(model, variant, device, budget, context)

    def _candidate(
        self, model: Model, variant: Variant, device: Device, budget: Budget, context: int
    ) -> Candidate:
        found = estimate(
            model.name, model.geometry, model.window, variant, device,
            replace(budget, context_tokens=context),
        )  # fmt: skip
        return of_estimate(found, parameters=model.geometry.parameters, note="; ".join(model.notes))

    def at_context(
        self, device: Device, budget: Budget, candidate: Candidate, tokens: int
    ) -> Candidate:
        """The same candidate in a shorter context."""
        model = next(model for model in self.models if model.name == candidate.model)
        return self._candidate(model, candidate.variant, device, budget, tokens)


def _worth() -> list[str]:
    """Every format's recipes from nearly exact to the smallest that is still accurate."""
    return [f"{name}:{recipe}" for name in formats.names() for recipe in formats.load(name).WORTH]


def _select(
    planner: _Planner, device: Device, budget: Budget, arguments: argparse.Namespace
) -> Selection:
    return select(
        planner.candidates(device, budget),
        budget,
        device.name,
        int(device.memory_bytes.value),
        prefer=arguments.prefer,
        accept=accepted(arguments),
        at_context=lambda candidate, tokens: planner.at_context(device, budget, candidate, tokens),
    )


def _row(
    planner: _Planner, device: Device, budget: Budget, arguments: argparse.Namespace
) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "") | {"device": device.name, "budget": budget.name}
    try:
        chosen = _select(planner, device, budget, arguments).chosen
    except SelectionError as error:
        nearest = error.rejected[0]
        return row | {
            "model": "none", "reason": f"nearest {nearest.candidate.name}: {nearest.reason}"
        }  # fmt: skip
    return row | {
        "model": chosen.model,
        "variant": chosen.variant.name,
        "memory_gib": f"{chosen.memory_bytes.high / GIB:.2f}",
        "first_token": _times(chosen.first_token_s),
        "per_token": _times(chosen.per_token_s),
        "completion": _times(chosen.completion_s),
        "evidence": chosen.evidence,
        "reason": chosen.note,
    }


def _times(limit: Limit | None) -> str:
    return "" if limit is None else durations(limit)


def _csv(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: Sequence[dict[str, str]]) -> str:
    shown = [name for name in COLUMNS if name != "evidence"]
    return "\n".join(columns([shown, *([row[name] for name in shown] for row in rows)]))
