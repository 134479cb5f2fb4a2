"""The JSON that says what a device is, or what a budget allows."""

from __future__ import annotations

from pathlib import Path

from packager.core.package_data import profiles_folder, read_schema
from packager.devices.budget import load_budget
from packager.devices.database import load_device
from tests.fuzz import forms
from tests.fuzz.target import one_of, split_file

WORDS = (
    *read_schema("device")["properties"], *read_schema("budget")["properties"],
    "value", "source", "date", "p50", "p90", "prompt_tokens", "memory_gb", "first_token_ms",
)  # fmt: skip
READ = {"device": load_device, "budget": load_budget}
FORM = forms.Files({kind: forms.Json(WORDS) for kind in READ})
SHARE = 30


def seeds(_folder: Path) -> list[bytes]:
    """Some of our own."""
    names = {
        "device": ("tesla-t4", "rtx-3060-12gb", "cpu-zen4-2-cores"),
        "budget": ("inline", "batch"),
    }
    return [
        one_of(kind, (profiles_folder() / f"{kind}s" / f"{name}.json").read_bytes())
        for kind in names
        for name in names[kind]
    ]


def run(data: bytes, folder: Path) -> None:
    """Read as `--device FILE` and `--budget FILE` are."""
    kind, content = split_file(data)
    file = folder / "profile.json"
    file.write_bytes(content)
    READ.get(kind, load_budget)(file)
