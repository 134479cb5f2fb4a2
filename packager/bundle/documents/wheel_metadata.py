"""What a wheel says of itself: name, version and licence, and its licence texts.

Read from the archive without installing it. The licence is what the package's own metadata
declares, by PEP 639 or, where a package is older than that, by its License field or classifier.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.metadata import RawMetadata, parse_email
from packaging.utils import canonicalize_name

from packager.core.atomic import sha256_file
from packager.core.errors import IntegrityError

# The usual names of texts that have to go with a package, wherever they are in it.
TEXTS = re.compile(
    r"(licen[cs]e|copying|notice|authors|third[-_ ]?party[-_ ]?(notices|licen[cs]es))s?([._-].*)?",
    re.IGNORECASE,
)
MAX_TEXT_BYTES = 8 * 1024 * 1024  # guessed: torch's whole collection is under 1 MB
MAX_LICENCE_CHARACTERS = 120  # guessed: a longer License field is the text, not its name
_CLASSIFIER = "License :: OSI Approved :: "
# What some packages write in the License field or a classifier, as SPDX identifiers.
_SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": None,  # which of them, it does not say
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


@dataclass(frozen=True, slots=True)
class WheelMetadata:
    """One wheel. licence: an SPDX expression or the package's own words; None: it says nothing.

    texts: file below licence/wheels/NAME to its content.
    """

    file: str
    name: str
    version: str
    summary: str | None
    licence: str | None
    sha256: str
    texts: dict[str, bytes]


def read_wheel(wheel: Path) -> WheelMetadata:
    """Read a wheel's metadata and licence texts; raises IntegrityError where it has none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            folder = _metadata_folder(archive)
            data = archive.read(f"{folder}/METADATA")
            texts = {"METADATA": data} | _texts(archive, folder)
    except (zipfile.BadZipFile, KeyError, StopIteration, OSError) as error:
        raise IntegrityError(
            f"a wheel without metadata: {error}", where=wheel, remedy="fetch or build it again"
        ) from None
    found, _ = parse_email(data)
    name, version = wheel.name.split("-")[:2]
    return WheelMetadata(
        file=wheel.name,
        name=canonicalize_name(found.get("name", name)),
        version=found.get("version", version),
        summary=found.get("summary"),
        licence=_licence(found),
        sha256=sha256_file(wheel),
        texts=texts,
    )


def _metadata_folder(archive: zipfile.ZipFile) -> str:
    tops = (PurePosixPath(name).parts[0] for name in archive.namelist())
    return next(top for top in tops if top.endswith(".dist-info"))


def _texts(archive: zipfile.ZipFile, folder: str) -> dict[str, bytes]:
    """Path to content; those of the metadata folder lose its name, and PEP 639's `licenses`."""
    texts = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        own = path.parts[:2] == (folder, "licenses")
        if info.is_dir() or not (own or TEXTS.fullmatch(path.name)):
            continue
        if path.suffix in (".py", ".pyc", ".so") or info.file_size > MAX_TEXT_BYTES:
            continue
        parts = path.parts[2 if own else 1 :] if path.parts[0] == folder else path.parts
        if ".." not in parts and not path.is_absolute():
            texts["/".join(parts)] = archive.read(info)
    return texts


def _licence(found: RawMetadata) -> str | None:
    expression = found.get("license_expression")
    if expression:
        return expression
    named = [c.removeprefix(_CLASSIFIER) for c in found.get("classifiers", [])
             if c.startswith(_CLASSIFIER)]  # fmt: skip
    written = (found.get("license") or "").strip()
    if written and len(written) <= MAX_LICENCE_CHARACTERS and "\n" not in written:
        named.insert(0, written)
    for name in named:
        if spdx := _SPDX.get(name.lower(), ""):
            return spdx
    return named[0] if named else None
