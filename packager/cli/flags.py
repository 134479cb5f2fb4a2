"""Flags that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from packager import formats
from packager.selection.selector import PREFERENCES
from runtimes.bundle.open import MAX_CONTEXT_TOKENS
from runtimes.trust.entries import MAX_VARIANTS

BUDGET_HELP = "inline, relaxed, batch, or a JSON file of limits (none)"


def add_model(sub: argparse.ArgumentParser) -> None:
    """MODEL, and an adapter for it."""
    sub.add_argument("model", type=Path, help="folder of a StarCoder2 checkpoint")
    sub.add_argument("--adapter", type=Path, help="folder of a PEFT LoRA to merge in")


def add_out(sub: argparse.ArgumentParser) -> None:
    """The folder for everything that is made."""
    sub.add_argument("--out", type=Path, default=Path("artifacts"), help="output (artifacts)")


def add_formats(sub: argparse.ArgumentParser) -> None:
    """What to convert to, and what it is calibrated on."""
    known = [formats.load(name) for name in formats.names()]
    recipes = "; ".join(f"{format.NAME}:RECIPE with {format.RECIPE_HELP}" for format in known)
    alone = ", ".join(f"{f.NAME}:{recipe}" for f in known for recipe in f.DEFAULT_RECIPES)
    heads = "; ".join(f"{f.NAME}: {f.HEAD_BITS_HELP}" for f in known if f.HEAD_BITS_HELP)
    sub.add_argument(
        "--formats",
        type=names,
        default=["gguf"],
        metavar="FORMAT[:RECIPE],...",
        help=f"{recipes}. A FORMAT alone is {alone}",
    )
    sub.add_argument("--head-bits", type=count(4, 32), metavar="N", help=heads)
    for format in known:
        if format.CALIBRATION is not None:
            text = f"{format.NAME}: {format.CALIBRATION.help}"
            sub.add_argument(f"--{format.CALIBRATION.flag}", type=Path, help=text)
    add_out(sub)


def add_judged(sub: argparse.ArgumentParser) -> None:
    """A model, its variants, and how they are opened and judged."""
    add_model(sub)
    add_formats(sub)
    sub.add_argument(
        "--provider",
        choices=("cpu", "cuda"),
        default="cpu",
        help="provider that runs the model (cpu)",
    )
    sub.add_argument(
        "--gpu-layers", type=count(0, 10_000), default=0,
        help="gguf: layers to put on a GPU, if not all fit (0)",
    )  # fmt: skip
    sub.add_argument(
        "--context", type=count(1, MAX_CONTEXT_TOKENS),
        help="tokens to open for (the budget's, 16384, or the model's own)",
    )  # fmt: skip
    sub.add_argument(
        "--threads", type=count(1, 1024), help="CPU threads (this machine's physical cores)"
    )
    sub.add_argument(
        "--held-out", type=Path, help="folder of source code to judge quality on (starpack's own)"
    )
    sub.add_argument(
        "--samples", type=count(1, 10_000), help="infilling samples of each of three kinds (20)"
    )


def add_measured(sub: argparse.ArgumentParser) -> None:
    """All of add_judged, the target device and its budget."""
    add_judged(sub)
    sub.add_argument("--device", help="target device: a name or a file (this machine)")
    sub.add_argument("--budget", help=BUDGET_HELP)
    add_preference(sub)


def add_planned(sub: argparse.ArgumentParser) -> None:
    """What `plan` considers; no weights are needed."""
    sub.add_argument("--models", type=names, default=["3b", "7b", "15b"], help="models (3b,7b,15b)")
    sub.add_argument(
        "--formats", type=names, default=[], metavar="FORMAT[:RECIPE],...",
        help="recipes to consider, as for `convert` (each format's best)",
    )  # fmt: skip
    sub.add_argument(
        "--context", type=count(1, MAX_CONTEXT_TOKENS), help="tokens (the budget's, or 16384)"
    )
    add_preference(sub)


def add_preference(sub: argparse.ArgumentParser) -> None:
    """What decides between candidates, and what may be overridden."""
    sub.add_argument(
        "--prefer", choices=PREFERENCES, default="quality",
        help="what to rank by among variants that fit (quality)",
    )  # fmt: skip
    sub.add_argument(
        "--accept-uncalibrated", action="store_true",
        help="accept estimates not validated for this device; the bundle records it",
    )  # fmt: skip
    sub.add_argument(
        "--accept-quality", action="store_true",
        help="accept quality below the budget's floor; the bundle records it",
    )  # fmt: skip


def add_variants(sub: argparse.ArgumentParser) -> None:
    """How many of those that fit are packed."""
    sub.add_argument(
        "--variants", nargs="?", const=MAX_VARIANTS, type=count(1, MAX_VARIANTS), metavar="N",
        help="pack the N best variants that fit; the device chooses; without N, all (1)",
    )  # fmt: skip


def add_explain(sub: argparse.ArgumentParser) -> None:
    """How much is shown."""
    sub.add_argument("--explain", action="store_true", help="every candidate with every reason")


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part for part in text.split(",") if part]


def count(minimum: int, maximum: int) -> Callable[[str], int]:
    """A whole number from `minimum` to `maximum`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def add_detect(sub: argparse.ArgumentParser) -> None:
    """Which device of this machine, and where to write it."""
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/device.json"),
        help="file to write (artifacts/device.json)",
    )  # fmt: skip
    sub.add_argument("--kind", choices=("gpu", "cpu"), help="gpu or cpu (the GPU, if any)")
    sub.add_argument("--index", type=count(0, 63), default=0, help="which GPU (0)")
