"""From a selection to a bundle that has been installed and has answered."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import pack
from packager.errors import StarpackError
from packager.pipeline import Settings, convert
from packager.records import Checkpoint, Progress, Selection
from packager.store import to_plain
from packager.wheelhouse import collect_wheels
from packager.wheels import build_engine

PROMPT = 'def read_json(path):\n    """Read a JSON file."""\n'
PREFIX = "def area(width, height):\n    return "
SUFFIX = "\n\n\ndef volume(width, height, depth):\n    return width * height * depth\n"
TRIAL_TOKENS = 48
TIME_LIMIT_S = 600


@dataclass(frozen=True, slots=True)
class Trial:
    """What an installed bundle answered, in processes of its own without the checkout."""

    installed: Path
    prompt: str
    completion: str
    prefix: str
    middle: str
    suffix: str


def pack_selection(
    checkpoint: Checkpoint,
    selection: Selection,
    settings: Settings,
    *,
    licence_file: Path | None,
    progress: Progress,
) -> Path:
    """Pack the chosen variant into `out`/bundle, with its evidence; returns the folder."""
    artifact = convert(checkpoint, selection.chosen.variant, settings, progress)
    engine = build_engine(settings.out / "wheels", progress=progress)
    out = settings.out / "bundle"
    pack(
        artifact,
        checkpoint,
        out,
        wheels=collect_wheels(engine, progress=progress),
        evidence=to_plain(selection.chosen),
        licence_file=licence_file,
        progress=progress,
    )
    return out


def try_bundle(bundle: Path, installed: Path, progress: Progress) -> Trial:
    """Install the bundle to `installed` and let it generate and infill once each there."""
    progress("install", 0, 3)
    _run([bundle / "install", "--to", installed], "")
    progress("install", 1, 3)
    run, common = installed / "run", ["--json", "--max-tokens", TRIAL_TOKENS]
    completion = _run([run, "generate", "--file", "-", *common], PROMPT)
    progress("install", 2, 3)
    gap = "<GAP>"
    middle = _run([run, "infill", "--marker", gap, *common], PREFIX + gap + SUFFIX)
    progress("install", 3, 3)
    texts = (json.loads(answer)["text"] for answer in (completion, middle))
    return Trial(installed, PROMPT, next(texts), PREFIX, next(texts), SUFFIX)


def _run(command: list[object], text: str) -> str:
    # nothing of the checkout is passed on: the bundle has to stand on its own
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        input=text,
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    if done.returncode:
        error = StarpackError(
            f"the bundle's {Path(str(command[0])).name} ended with code {done.returncode}",
            where=command[0],
            expected=done.stderr.strip() or None,
        )
        error.exit_code = done.returncode
        raise error
    return done.stdout
