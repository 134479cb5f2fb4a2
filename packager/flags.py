"""Every command's flags, and what `--help` says."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packager import commands, plan_commands, profile_commands, quality_commands
from packager.select import PREFERENCES
from runtimes.bundle import MAX_CONTEXT_TOKENS

DESCRIPTION = """\
Turn a StarCoder2 checkpoint into a self-contained bundle that generates and infills offline,
with the model's sliding window exact at any length.

The way a model takes, one command each:
  inspect   what is in the checkpoint, and what it needs
  plan      what would run on a device, from its data alone   (--device tesla-t4)
  convert   write the variants            (--formats gguf:Q4_K_M,onnx:int4-g32)
  profile   prove the window, judge quality, time each variant on this machine
  select    choose the best one for a device within a budget, with reasons and a report
  pack      all of these, then write the bundle
  bundle    all of these, then install the bundle and let it answer
"""
EPILOG = """\
examples:
  starpack inspect examples/demo
  starpack bundle examples/demo --out artifacts
  starpack plan --device rtx-3060-12gb --budget inline --explain
  starpack convert models/starcoder2-3b --formats gguf:Q4_K_M,onnx --out artifacts --json
  starpack calibrate models/starcoder2-3b --sources src/ --out importance.gguf

exit codes: 0 ok, 2 usage, 3 nothing fits the budget, 4 quality or window, 5 integrity, 6 no
network, 7 device or engine, 8 checkpoint refused, 9 an outside tool failed, 130 interrupted
"""
BUDGET_HELP = "inline, relaxed, batch, or a JSON file of limits (none)"


def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    top = argparse.ArgumentParser(
        prog="starpack",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands_at = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: commands.Command) -> argparse.ArgumentParser:
        text = textwrap.dedent(command.__doc__ or "")
        sub = commands_at.add_parser(name, help=text.split("\n")[0], description=text)
        sub.add_argument("--json", action="store_true", help="data on stdout, logs on stderr")
        sub.set_defaults(command=command)
        return sub

    _add_model(add("inspect", commands.inspect))
    sub = add("fetch", commands.fetch)
    sub.add_argument("repo", metavar="ORG/NAME", help="repository on the Hugging Face hub")
    sub.add_argument("--revision", required=True, help="branch, tag or commit; a commit is kept")
    sub.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    sub = add("wheels", commands.wheels)
    sub.add_argument("--cuda", action="store_true", help="the CUDA build; needs nvcc and an hour")
    _add_out(sub)
    sub = add("calibrate", commands.calibrate)
    _add_model(sub)
    sub.add_argument("--sources", type=Path, required=True, help="folder of source code")
    sub.add_argument(
        "--sequences", type=_count(1, 10_000), default=16, help="stretches of text (16)"
    )
    sub.add_argument(
        "--length", type=_count(1, 131_072), default=2048, help="tokens in each (2048)"
    )
    sub.add_argument("--out", type=Path, required=True, help="file to write")
    sub = add("convert", commands.convert)
    _add_model(sub)
    _add_formats(sub)
    _add_measured(add("profile", profile_commands.profile))
    sub = add("select", profile_commands.select)
    _add_measured(sub)
    _add_explain(sub)
    for name, command in (("pack", profile_commands.pack), ("bundle", profile_commands.bundle)):
        sub = add(name, command)
        _add_measured(sub)
        sub.add_argument(
            "--licence-file", type=Path, help="the model's licence, if not in its folder"
        )
    sub = add("quality", quality_commands.quality)
    _add_judged(sub)
    sub.add_argument(
        "--infilling", type=Path, metavar="FILE",
        help="also fill the holes of a .jsonl.gz in the public HumanEval-infilling format",
    )  # fmt: skip
    sub.add_argument(
        "--limit", type=_count(1, 1_000_000), help="at most so many of its tasks, spread evenly"
    )
    sub.add_argument(
        "--execute", action="store_true",
        help="run the tests of each on the code that the model wrote, in a limited child process",
    )  # fmt: skip
    sub = add("plan", plan_commands.plan)
    sub.add_argument("--device", required=True, help="a name (`starpack device list`) or a file")
    sub.add_argument("--budget", help=BUDGET_HELP)
    _add_planned(sub)
    _add_explain(sub)
    sub = add("matrix", plan_commands.matrix)
    sub.add_argument("--devices", type=_names, default=["all"], help="all (default) or names: a,b")
    sub.add_argument(
        "--budgets",
        type=_names,
        default=["inline", "relaxed"],
        help="names or files (inline,relaxed)",
    )
    sub.add_argument("--csv", type=Path, help="also write the table to this file")
    _add_planned(sub)
    sub = add("verify", commands.verify)
    sub.add_argument("bundle", type=Path, help="folder of a bundle")
    return top


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, help="folder of a StarCoder2 checkpoint")
    sub.add_argument("--adapter", type=Path, help="folder of a PEFT LoRA to merge in")


def _add_out(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, default=Path("artifacts"), help="output (artifacts)")


def _add_formats(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--formats",
        type=_names,
        default=["gguf"],
        metavar="FORMAT[:RECIPE],...",
        help="gguf:RECIPE with F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or IQ4_XS; onnx:RECIPE "
        "with fp32, fp16, int8, int4-g32, int4-g64, int4-g128, or int4 with --gptq; gptq:RECIPE "
        "with w4g128, w4g64, w4g32, w8g128, ..., each also with -asym. A FORMAT alone is "
        "gguf:Q4_K_M, onnx:int4-g32, gptq:w4g128",
    )
    sub.add_argument(
        "--head-bits", type=_count(4, 32), metavar="N",
        help="onnx: bits of the head and the embedding: 4, 8 (default), or 16 or 32 as the rest; "
        "gptq: of the head as it runs: 4, 8 or 16 (default)",
    )  # fmt: skip
    sub.add_argument(
        "--imatrix", type=Path, help="gguf: importance matrix; see `starpack calibrate`"
    )
    sub.add_argument("--gptq", type=Path, help="onnx:int4: folder of GPTQ weights of this model")
    sub.add_argument("--sources", type=Path, help="gptq: folder of source code to calibrate on")
    _add_out(sub)


def _add_judged(sub: argparse.ArgumentParser) -> None:
    _add_model(sub)
    _add_formats(sub)
    sub.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="what runs the model (cpu)"
    )
    sub.add_argument(
        "--gpu-layers", type=_count(0, 10_000), default=0,
        help="gguf: layers to put on a GPU, where not all (0)",
    )  # fmt: skip
    sub.add_argument(
        "--context", type=_count(1, MAX_CONTEXT_TOKENS),
        help="tokens to open for (the budget's, 16384, or the model's own)",
    )  # fmt: skip
    sub.add_argument(
        "--threads", type=_count(1, 1024), help="CPU threads (this machine's physical cores)"
    )
    sub.add_argument(
        "--held-out", type=Path, help="folder of source code to judge quality on (starpack's own)"
    )
    sub.add_argument(
        "--holes", type=_count(1, 10_000), help="holes of each of three kinds to fill (20)"
    )


def _add_measured(sub: argparse.ArgumentParser) -> None:
    _add_judged(sub)
    sub.add_argument(
        "--device", help="where it is to run: none for this machine, a name, or a device file"
    )
    sub.add_argument("--budget", help=BUDGET_HELP)
    _add_preference(sub)


def _add_planned(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--models", type=_names, default=["3b", "7b", "15b"], help="models (3b,7b,15b)"
    )
    sub.add_argument(
        "--formats", type=_names, default=[], metavar="FORMAT[:RECIPE],...",
        help="recipes to consider, as for `convert` (all that are worth a choice)",
    )  # fmt: skip
    sub.add_argument(
        "--context", type=_count(1, MAX_CONTEXT_TOKENS), help="tokens (the budget's, or 16384)"
    )
    _add_preference(sub)


def _add_preference(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--prefer", choices=PREFERENCES, default="quality",
        help="what counts first among those that fit (quality)",
    )  # fmt: skip
    sub.add_argument(
        "--accept-uncalibrated", action="store_true",
        help="rely on estimates outside of what they were tested on; it is recorded",
    )  # fmt: skip
    sub.add_argument(
        "--accept-quality", action="store_true",
        help="choose below the budget's quality floor; it is recorded",
    )  # fmt: skip


def _add_explain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--explain", action="store_true", help="every candidate with every reason")


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _count(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def _version() -> str:
    try:
        return f"starpack {version('starpack')}"
    except PackageNotFoundError:
        return "starpack, not installed"
