"""A bundle is tried as whoever receives it would: its failures keep their kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.bundle.smoke_test import try_bundle
from packager.core.errors import DeviceError, IntegrityError, OfflineError, StarpackError
from packager.core.records import no_progress


def bundle_of(folder: Path, install: str, run: str = "") -> Path:
    """A bundle of nothing but its two scripts."""
    (folder / "installed").mkdir(parents=True)
    for file, text in ((folder / "install", install), (folder / "installed" / "run", run)):
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    return folder


def test_its_answers_are_taken_from_what_it_prints(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "exit 0", """cat >/dev/null; printf '{"text": "%s"}' "$1" """)
    trial = try_bundle(bundle, tmp_path / "installed", no_progress)
    assert (trial.completion, trial.middle) == ("generate", "infill")


@pytest.mark.parametrize(
    ("code", "kind"), [(5, IntegrityError), (6, OfflineError), (7, DeviceError), (9, StarpackError)]
)
def test_a_failure_keeps_its_kind_and_says_what_to_run(
    tmp_path: Path, code: int, kind: type[StarpackError]
) -> None:
    bundle = bundle_of(tmp_path, f"echo why >&2; exit {code}")
    with pytest.raises(StarpackError, match=f"ended with code {code}: why") as caught:
        try_bundle(bundle, tmp_path / "installed", no_progress)
    assert type(caught.value) is kind and caught.value.exit_code == kind.exit_code
    assert f"{bundle}/install --to" in str(caught.value.remedy)
