"""From parsed flags to what the pipeline takes: the same for every command."""

from __future__ import annotations

import argparse
from pathlib import Path

from packager import formats, pipeline
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint, Progress, Variant
from packager.core.settings import DeviceSettings, JudgeSettings, SampleSize
from packager.devices.budget import load_budget
from packager.devices.choice import target_device
from packager.estimate.estimator import DEFAULT_CONTEXT_TOKENS
from runtimes.host.limits import default_threads


def checkpoint_of(arguments: argparse.Namespace, progress: Progress) -> Checkpoint:
    """The checkpoint in MODEL, with its adapter if one is given."""
    return read_checkpoint(arguments.model, adapter=arguments.adapter, progress=progress)


def variants_of(arguments: argparse.Namespace) -> list[Variant]:
    """What --formats asks for."""
    return pipeline.plan(arguments.formats, arguments.head_bits)


def calibrations_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """By format, what was learned from text for it."""
    learned = {name: formats.load(name).CALIBRATION for name in formats.names()}
    given = {name: getattr(arguments, kind.flag) for name, kind in learned.items() if kind}
    return {name: path for name, path in given.items() if path is not None}


def judging_of(arguments: argparse.Namespace, checkpoint: Checkpoint) -> JudgeSettings:
    """What converting and judging need; looks at no device."""
    trained = min(DEFAULT_CONTEXT_TOKENS, checkpoint.context_tokens)
    return JudgeSettings(
        arguments.out.resolve(),
        calibrations_of(arguments),
        context_tokens=arguments.context or trained,
        threads=arguments.threads or default_threads(),
        provider=arguments.provider,
        gpu_layers=arguments.gpu_layers,
        held_out=arguments.held_out,
        sample_size=SampleSize()
        if arguments.samples is None
        else SampleSize(samples_per_kind=arguments.samples),
    )


def settings_of(
    arguments: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> DeviceSettings:
    """What profiling and selecting need; looks at this machine where it is the device."""
    judging, budget = judging_of(arguments, checkpoint), load_budget(arguments.budget)
    device, here = target_device(arguments.device, arguments.provider, judging.out, progress)
    wanted = budget.context_tokens and min(budget.context_tokens, checkpoint.context_tokens)
    return DeviceSettings(
        judging.out,
        judging.calibrations,
        context_tokens=arguments.context or wanted or judging.context_tokens,
        threads=judging.threads,
        provider=judging.provider,
        gpu_layers=judging.gpu_layers,
        held_out=judging.held_out,
        sample_size=judging.sample_size,
        device=device,
        timed_here=here,
        budget=budget,
        prefer=arguments.prefer,
        accept=accepted(arguments),
    )


def accepted(arguments: argparse.Namespace) -> frozenset[str]:
    """What the user overrides."""
    flags = {"uncalibrated": arguments.accept_uncalibrated, "quality": arguments.accept_quality}
    return frozenset(name for name, given in flags.items() if given)
