"""Every command with its flags, and what `--help` says."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn, TypeAlias

from packager.cli import (
    bundle,
    checkpoint,
    convert,
    device,
    estimate,
    flags,
    plan,
    profile,
    quality,
)
from packager.cli.result import Command
from packager.core.errors import UsageError

DESCRIPTION = """\
Turn a StarCoder2 checkpoint into a self-contained bundle that generates and infills offline,
with the model's sliding window exact at any length.

The stages, one command each:
  inspect   what is in the checkpoint, and what it needs
  plan      estimate what fits a device; no weights needed  (--device tesla-t4)
  convert   write the variants            (--formats gguf:Q4_K_M,onnx:int4-g32)
  profile   prove the window, judge quality, time each variant on this machine
  select    choose the best one for a device within a budget, with reasons and a report
  pack      all of these, then write the bundle
  bundle    all of these, then install the bundle and run it
  sign      sign a bundle with your key; verify --public-key checks it
  archive   write a bundle as one file, or in volumes; unpack and join reverse it
  diff      write only what changed between two bundles
"""
EPILOG = """\
examples:
  starpack inspect examples/demo
  starpack bundle examples/demo --out artifacts
  starpack plan --device rtx-3060-12gb --budget inline --explain
  starpack convert models/starcoder2-3b --formats gguf:Q4_K_M,onnx --out artifacts --json
  starpack calibrate models/starcoder2-3b --sources src/ --out importance.gguf
  starpack sign artifacts/bundle --key release.pem
  starpack archive artifacts/bundle --out starcoder2.tar --split 4G

exit codes: 0 ok, 2 usage, 3 nothing fits the budget, 4 quality or window, 5 integrity, 6 no
network, 7 device or engine, 8 checkpoint refused, 9 an outside tool failed, 130 interrupted
"""
# By the words of each command: its --help shows it, and a test parses it.
EXAMPLES = {
    "inspect": "models/starcoder2-3b",
    "fetch": "bigcode/starcoder2-3b --revision main --out models/starcoder2-3b",
    "wheels": "--out artifacts",
    "calibrate": "models/starcoder2-3b --sources src/ --out importance.gguf",
    "convert": "models/starcoder2-3b --formats gguf:Q4_K_M,onnx --out artifacts",
    "profile": "models/starcoder2-3b --formats gguf:Q4_K_M --budget inline",
    "select": "models/starcoder2-3b --formats gguf:Q8_0,gguf:Q4_K_M --device tesla-t4",
    "pack": "models/starcoder2-3b --formats gguf --variants 2 --archive starcoder2.tar",
    "bundle": "examples/demo --out artifacts",
    "quality": "models/starcoder2-3b --formats gguf:Q4_K_M --held-out src/",
    "plan": "--device rtx-3060-12gb --budget inline --explain",
    "matrix": "--devices tesla-t4,l4-24gb --budgets inline --csv fleet.csv",
    "device list": "",
    "device show": "tesla-t4",
    "device detect": "--kind cpu --out artifacts/device.json",
    "device calibrate": "--device artifacts/device.json",
    "estimate run": "3b --device tesla-t4 --formats gguf:Q4_K_M --budget inline",
    "estimate validate": "",
    "archive": "artifacts/bundle --out starcoder2.tar --split 4G",
    "unpack": "starcoder2.tar --out bundle",
    "join": "starcoder2.tar.index.json",
    "diff": "old/bundle artifacts/bundle --out delta",
    "verify": "artifacts/bundle --public-key release.pub",
    "sign": "artifacts/bundle --key release.pem",
}


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Add = Callable[..., argparse.ArgumentParser]
"""add(name, command, at=top level): a parser of that command's flags."""


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that they are shown as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """All commands and their flags; it raises UsageError for words that make no sense."""
    top: argparse.ArgumentParser = _Parser(
        prog="starpack",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands_at = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, at: Commands = commands_at) -> argparse.ArgumentParser:
        text = inspect.cleandoc(command.__doc__ or "")
        sub = at.add_parser(
            name,
            help=text.split("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        words = sub.prog.removeprefix("starpack ")
        sub.epilog = f"example:\n  starpack {words} {EXAMPLES[words]}".rstrip()
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument("--quiet", action="store_true", help="no progress on standard error")
        sub.set_defaults(command=command)
        return sub

    _add_making(add)
    _add_choosing(add)
    _add_devices(commands_at, add)
    bundle.add_commands(add)
    return top


def _add_making(add: Add) -> None:
    """Checkpoints, engines and conversion."""
    flags.add_model(add("inspect", checkpoint.inspect))
    sub = add("fetch", checkpoint.fetch)
    sub.add_argument("repo", metavar="ORG/NAME", help="repository on the Hugging Face hub")
    sub.add_argument("--revision", required=True, help="branch, tag or commit; a commit is kept")
    sub.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    sub = add("wheels", convert.wheels)
    sub.add_argument("--cuda", action="store_true", help="the CUDA build; needs nvcc and an hour")
    flags.add_out(sub)
    sub = add("calibrate", convert.calibrate)
    flags.add_model(sub)
    sub.add_argument("--sources", type=Path, required=True, help="folder of source code")
    sub.add_argument(
        "--sequences", type=flags.count(1, 10_000), default=16, help="sequences of text (16)"
    )
    sub.add_argument(
        "--length", type=flags.count(1, 131_072), default=2048, help="tokens in each (2048)"
    )
    sub.add_argument("--out", type=Path, required=True, help="file to write")
    sub = add("convert", convert.convert)
    flags.add_model(sub)
    flags.add_formats(sub)


def _add_choosing(add: Add) -> None:
    """Measure, select, pack; judge and plan."""
    flags.add_measured(add("profile", profile.profile))
    sub = add("select", profile.select)
    flags.add_measured(sub)
    flags.add_explain(sub)
    for name, command in (("pack", profile.pack), ("bundle", profile.bundle)):
        sub = add(name, command)
        flags.add_measured(sub)
        sub.add_argument(
            "--licence-file", type=Path, help="the model's licence, if not in its folder"
        )
        flags.add_variants(sub)
        bundle.add_target_flags(sub)
        bundle.add_archive_flags(sub)
    sub = add("quality", quality.quality)
    flags.add_judged(sub)
    sub.add_argument(
        "--infilling", type=Path, metavar="FILE",
        help="also complete a .jsonl.gz file in the public HumanEval-infilling format",
    )  # fmt: skip
    sub.add_argument(
        "--limit",
        type=flags.count(1, 1_000_000),
        help="maximum number of its tasks, spread evenly",
    )
    sub.add_argument(
        "--execute", action="store_true",
        help="run each task's tests on the generated code, in a sandboxed child process",
    )  # fmt: skip
    sub = add("plan", plan.plan)
    sub.add_argument("--device", required=True, help="a name (`starpack device list`) or a file")
    sub.add_argument("--budget", help=flags.BUDGET_HELP)
    flags.add_planned(sub)
    flags.add_explain(sub)
    sub = add("matrix", plan.matrix)
    sub.add_argument(
        "--devices", type=flags.names, default=["all"], help="all (default) or names: a,b"
    )
    sub.add_argument(
        "--budgets",
        type=flags.names,
        default=["inline", "relaxed"],
        help="names or files (inline,relaxed)",
    )
    sub.add_argument("--csv", type=Path, help="also write the table to this file")
    flags.add_planned(sub)


def _add_devices(at: Commands, add: Add) -> None:
    """The device database and the estimates, each with commands of its own."""
    about = "The device database, and what this machine is."
    group = at.add_parser("device", help=about, description=about)
    devices_at = group.add_subparsers(metavar="COMMAND", required=True)
    add("list", device.list_all, devices_at)
    sub = add("show", device.show, devices_at)
    sub.add_argument("device", help="name or alias, or the path of a device file")
    flags.add_detect(add("detect", device.detect, devices_at))
    sub = add("calibrate", estimate.calibrate, devices_at)
    sub.add_argument("--device", required=True, help="file that `starpack device detect` wrote")
    sub.add_argument("--threads", type=flags.count(1, 1024), help="CPU threads (physical cores)")
    about = "What a variant will take on a device, and how accurate the estimates are."
    group = at.add_parser("estimate", help=about, description=about)
    estimates_at = group.add_subparsers(metavar="COMMAND", required=True)
    sub = add("run", estimate.run, estimates_at)
    sub.add_argument("model", help="3b, 7b, 15b, or folder of a StarCoder2 checkpoint")
    flags.add_formats(sub)
    sub.add_argument("--device", required=True, help="name, alias or file of a device")
    sub.add_argument("--budget", help=flags.BUDGET_HELP)
    sub = add("validate", estimate.check, estimates_at)
    sub.add_argument("--write", action="store_true", help="write the newly fitted constants")


def _version() -> str:
    try:
        return f"starpack {version('starpack')}"
    except PackageNotFoundError:
        return "starpack, not installed"
