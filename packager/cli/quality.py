"""`quality`: how good each variant is, without timing anything. Prints nothing."""

from __future__ import annotations

import argparse
from typing import Any

from packager import pipeline
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.cli.formatting import judged_lines
from packager.cli.result import CommandResult
from packager.cli.settings import checkpoint_of, judging_of, variants_of
from packager.core.errors import QualityError, UsageError
from packager.core.record_store import to_plain
from packager.core.records import Artifact, Checkpoint, Progress
from packager.core.settings import JudgeSettings
from packager.measurement.assessment import assess
from packager.measurement.humaneval import InfillingScore, Task, read_tasks, run_infilling
from runtimes import backends
from runtimes.generation.runtime import Runtime
from runtimes.prompts.tokenizer import Tokenizer


def quality(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Prove the window of every variant and compare it with the checkpoint on held-out code.

    With --infilling it also completes a file in the public HumanEval-infilling format.
    """
    if arguments.infilling is None and (arguments.execute or arguments.limit):
        raise UsageError("--execute and --limit belong to --infilling FILE")
    tasks = None if arguments.infilling is None else read_tasks(arguments.infilling)
    checkpoint = checkpoint_of(arguments, progress)
    settings = judging_of(arguments, checkpoint)
    found, texts, holds = [], [], True
    for variant in variants_of(arguments):
        artifact = pipeline.convert(checkpoint, variant, settings, progress)
        assessment = assess(checkpoint, artifact, settings, progress)
        holds &= assessment.proof is not None and assessment.proof.holds
        record: dict[str, Any] = {"variant": to_plain(variant)} | to_plain(assessment)
        lines = [variant.name, *judged_lines(assessment)]
        if tasks is not None and not assessment.failure:
            score = _infill(checkpoint, artifact, settings, tasks, arguments, progress)
            record["infilling"] = to_plain(score)
            lines += _infilling_lines(score)
        found.append(record)
        texts.append("\n".join(lines))
    exit_code = 0 if holds else QualityError.exit_code
    return CommandResult({"variants": found}, "\n\n".join(texts), exit_code)


def _infill(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: JudgeSettings,
    tasks: tuple[Task, ...],
    arguments: argparse.Namespace,
    progress: Progress,
) -> InfillingScore:
    model = artifact.path / artifact.entry
    backend = backends.open_model(
        artifact.variant.format, model, checkpoint.window, settings.options()
    )
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_NAME, checkpoint.special_ids)
    with Runtime(backend, tokenizer, checkpoint.special_ids) as runtime:
        return run_infilling(
            runtime, tasks, execute=arguments.execute, limit=arguments.limit, progress=progress
        )


def _infilling_lines(score: InfillingScore) -> list[str]:
    lines = [
        f"  infilling      {score.exact:.1%} of {len(score.answers)} exact, similarity "
        f"{score.similarity:.2f}"
    ]
    if score.passed is not None:
        lines.append(f"                 {score.passed:.1%} pass their tests ({score.containment})")
    return lines
