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
        "--provider", choices=("cpu", "cuda"), default="cpu", help="what runs the model (cpu)"
    )
    sub.add_argument(
        "--gpu-layers", type=count(0, 10_000), default=0,
        help="gguf: layers to put on a GPU, where not all (0)",
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
        "--holes", type=count(1, 10_000), help="holes of each of three kinds to fill (20)"
    )


def add_measured(sub: argparse.ArgumentParser) -> None:
    """All of add_judged, and where it is to run within which limits."""
    add_judged(sub)
    sub.add_argument(
        "--device", help="where it is to run: none for this machine, a name, or a device file"
    )
    sub.add_argument("--budget", help=BUDGET_HELP)
    add_preference(sub)


def add_planned(sub: argparse.ArgumentParser) -> None:
    """What is planned where there are no weights."""
    sub.add_argument("--models", type=names, default=["3b", "7b", "15b"], help="models (3b,7b,15b)")
    sub.add_argument(
        "--formats", type=names, default=[], metavar="FORMAT[:RECIPE],...",
        help="recipes to consider, as for `convert` (all that are worth a choice)",
    )  # fmt: skip
    sub.add_argument(
        "--context", type=count(1, MAX_CONTEXT_TOKENS), help="tokens (the budget's, or 16384)"
    )
    add_preference(sub)


def add_preference(sub: argparse.ArgumentParser) -> None:
    """What decides between candidates, and what may be overridden."""
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


def add_variants(sub: argparse.ArgumentParser) -> None:
    """How many of those that fit are packed."""
    sub.add_argument(
        "--variants", nargs="?", const=MAX_VARIANTS, type=count(1, MAX_VARIANTS), metavar="N",
        help="pack the N best of those that fit, to choose from on the device; without N, all (1)",
    )  # fmt: skip


def add_explain(sub: argparse.ArgumentParser) -> None:
    """How much is said."""
    sub.add_argument("--explain", action="store_true", help="every candidate with every reason")


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part for part in text.split(",") if part]


def count(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def add_detect(sub: argparse.ArgumentParser) -> None:
    """Which device of this machine, and where to write it."""
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/device.json"),
        help="file to write (artifacts/device.json)",
    )  # fmt: skip
    sub.add_argument("--kind", choices=("gpu", "cpu"), help="the GPU (where there is one) or CPU")
    sub.add_argument("--index", type=count(0, 63), default=0, help="which GPU (0)")
