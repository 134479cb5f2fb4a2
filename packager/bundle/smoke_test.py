"""Installs a bundle and lets it answer, in processes of its own without the checkout."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packager.core.errors import DeviceError, IntegrityError, OfflineError, StarpackError
from packager.core.records import Progress, no_progress
from runtimes.trust.installed.versions import base_python

PROMPT = "import os\n\ndef read_file(path):\n    with open("
PREFIX = """\
class Queue:
    def __init__(self):
        self.items = []

    def put(self, item):
"""
SUFFIX = "\n\n    def get(self):\n        return self.items.pop(0)\n"
TRIAL_TOKENS = 48
TIME_LIMIT_S = 3600  # installing copies and hashes the whole model
# What a bundle's exit code says went wrong.
KINDS = {kind.exit_code: kind for kind in (IntegrityError, OfflineError, DeviceError)}


@dataclass(frozen=True, slots=True)
class Trial:
    """What an installed bundle answered, once it was installed."""

    installed: Path
    prompt: str
    completion: str
    prefix: str
    middle: str
    suffix: str


def try_bundle(bundle: Path, installed: Path, progress: Progress = no_progress) -> Trial:
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
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHON": base_python(),  # the Python that the bundle was packed for
        "HF_HUB_OFFLINE": "1",
    }
    words = [str(part) for part in command]
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            input=text,
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StarpackError(
            f"the bundle's {name} took more than {TIME_LIMIT_S} s", where=words[0]
        ) from None
    if done.returncode:
        kind = KINDS.get(done.returncode, StarpackError)
        raise kind(
            f"the bundle's {name} ended with code {done.returncode}: {done.stderr.strip()}",
            where=words[0],
            remedy=f"run it by hand: {shlex.join(words)}",
        )
    return done.stdout
