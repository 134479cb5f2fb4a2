"""The `starpack` command line: flags, progress, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from packager import bundle_commands, commands, trust_commands
from packager.errors import StarpackError
from runtimes.bundle import MAX_CONTEXT_TOKENS

INTERRUPTED = 130

DESCRIPTION = """\
Turn a StarCoder2 checkpoint into a self-contained bundle that generates and infills offline,
with the model's sliding window exact at any length.

The way a model takes, one command each:
  inspect   what is in the checkpoint, and what it needs
  convert   write the variants            (--formats gguf:Q4_K_M,onnx:int4-g32)
  profile   prove the window, time each variant on this machine
  select    choose the best one within a budget
  pack      all of these, then write the bundle
  bundle    all of these, then install the bundle and let it answer
  sign      sign a bundle with your key; verify --public-key checks it
  archive   write a bundle as one file, or in volumes; unpack, join: the way back
  diff      write only what changed between two bundles
"""
EPILOG = """\
examples:
  starpack inspect examples/demo
  starpack bundle examples/demo --out artifacts
  starpack convert models/starcoder2-3b --formats gguf:Q4_K_M,onnx --out artifacts --json
  starpack calibrate models/starcoder2-3b --sources src/ --out importance.gguf
  starpack sign artifacts/bundle --key release.pem
  starpack archive artifacts/bundle --out starcoder2.tar --split 4G

exit codes: 0 ok, 2 usage, 3 nothing fits the budget, 4 quality or window, 5 integrity, 6 no
network, 7 device or engine, 8 checkpoint refused, 9 an outside tool failed, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        with _Bars(shown=not arguments.json and sys.stderr.isatty()) as bars:
            report = arguments.command(arguments, bars.update)
    except StarpackError as error:
        if arguments.json:
            print(json.dumps(error.to_json(), indent=2))
        else:
            print(f"starpack: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"starpack: {error}", file=sys.stderr)
        print(
            "  remedy: check the path, the permissions and the space on the disk", file=sys.stderr
        )
        return StarpackError.exit_code
    except KeyboardInterrupt:
        print("starpack: interrupted; finished steps are kept and resumed", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(report.data, indent=2) if arguments.json else report.text)
    return report.exit_code


class _Bars:
    """One progress bar at a time, on stderr; gone when its work is done."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: tqdm | None = None
        self.what = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if what != self.what or self.bar is None or self.bar.total != total:
            self.close()
            self.what = what
            self.bar = tqdm(total=total, desc=what, leave=False, unit_scale=True)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


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
    for name, command in (("profile", commands.profile), ("select", commands.select)):
        _add_measured(add(name, command))
    for name, command in (("pack", commands.pack), ("bundle", commands.bundle)):
        sub = add(name, command)
        _add_measured(sub)
        sub.add_argument(
            "--licence-file", type=Path, help="the model's licence, if not in its folder"
        )
        bundle_commands.add_target_flags(sub)
        bundle_commands.add_archive_flags(sub)
    sub = add("verify", commands.verify)
    sub.add_argument("bundle", type=Path, help="folder of a bundle")
    trust_commands.add_key(sub)
    trust_commands.add_commands(add)
    bundle_commands.add_commands(add)
    return top


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, help="folder of a StarCoder2 checkpoint")
    sub.add_argument("--adapter", type=Path, help="folder of a PEFT LoRA to merge in")


def _add_out(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, default=Path("artifacts"), help="output (artifacts)")


def _add_formats(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--formats",
        type=lambda text: [part for part in text.split(",") if part],
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


def _add_measured(sub: argparse.ArgumentParser) -> None:
    _add_model(sub)
    _add_formats(sub)
    sub.add_argument("--device", help="cpu: this machine")
    sub.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="what runs the model (cpu)"
    )
    sub.add_argument(
        "--gpu-layers", type=_count(0, 10_000), default=0,
        help="gguf: layers to put on a GPU, where not all (0)",
    )  # fmt: skip
    sub.add_argument("--budget", type=Path, help="JSON file of limits")
    sub.add_argument(
        "--context",
        type=_count(1, MAX_CONTEXT_TOKENS),
        help="tokens to open for (16384, or the model's own)",
    )
    sub.add_argument(
        "--threads", type=_count(1, 1024), help="CPU threads (this machine's physical cores)"
    )


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


if __name__ == "__main__":
    sys.exit(main())
