"""Which variant of a bundle to open: by its name, or the best that this machine has memory for.

The order is the packer's, by what was measured there; the choice here is by memory alone. Standard
library only. A bundle with one artifact is a bundle of one variant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from runtimes.bundle.baseline import fits, needed_bytes, read_baseline
from runtimes.errors import DeviceError, UsageError
from runtimes.host.gpu_memory import gpu_free_bytes
from runtimes.host.limits import machine_memory_bytes
from runtimes.trust.entries import VariantEntry
from runtimes.trust.manifest import Manifest

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """A variant, what it needs here, and what there is; available_bytes is 0 where unknown."""

    variant: VariantEntry
    needed_bytes: int
    available_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, as far as is known."""
        return fits(self.needed_bytes, self.available_bytes)

    @property
    def text(self) -> str:
        """For a reader."""
        free = "how much is free is not known"
        if self.available_bytes:
            free = f"{self.available_bytes / 1e6:.0f} MB are free"
        verdict = "fits" if self.fits else "does not fit"
        return f"{verdict}: it needs {self.needed_bytes / 1e6:.0f} MB, and {free}"


def variants_in(manifest: Manifest) -> tuple[VariantEntry, ...]:
    """All variants of the bundle, the best first."""
    if manifest.variants:
        return manifest.variants
    baseline = read_baseline(manifest.measured)
    name = f"{manifest.format}-{manifest.recipe}"
    only = VariantEntry(name, manifest.format, manifest.recipe, manifest.artifact)
    return (replace(only, memory_bytes=baseline.memory_bytes, measured=manifest.measured),)


def free_bytes(provider: str) -> int:
    """Memory that is free on the device that runs the model; 0 where unknown."""
    return gpu_free_bytes() if provider == "cuda" else machine_memory_bytes()[1]


def check_memory(manifest: Manifest, available_bytes: int) -> tuple[MemoryFit, ...]:
    """Each variant against the memory that is there, the best first."""
    return tuple(
        MemoryFit(
            variant,
            needed_bytes(variant.memory_bytes, _only(manifest, variant).artifact_bytes),
            available_bytes,
        )
        for variant in variants_in(manifest)
    )


def choose(
    manifest: Manifest,
    wanted: str | None,
    provider: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """The manifest as if the wanted variant were alone: a name, "auto", or None for the best.

    log: is given a line for each variant that "auto" looks at. Raises UsageError for a name that
    is not there, DeviceError where nothing fits.
    """
    if wanted is None:
        return _only(manifest, variants_in(manifest)[0])
    if wanted == AUTO:
        return _only(manifest, _best(check_memory(manifest, free_bytes(provider)), log))
    for variant in variants_in(manifest):
        if variant.name == wanted:
            return _only(manifest, variant)
    raise UsageError(
        f"the bundle has no variant {wanted!r}",
        expected=", ".join([AUTO, *(variant.name for variant in variants_in(manifest))]),
    )


def _best(fits_by_variant: Sequence[MemoryFit], log: Callable[[str], None]) -> VariantEntry:
    for one in fits_by_variant:
        log(f"variant {one.variant.name} {one.text}")
        if one.fits:
            return one.variant
    raise DeviceError(
        "no variant of the bundle fits the memory that is free",
        expected="; ".join(f"{one.variant.name}: {one.text}" for one in fits_by_variant),
        remedy="free memory, or take a bundle with a smaller variant; --variant NAME tries one",
    )


def _only(manifest: Manifest, variant: VariantEntry) -> Manifest:
    """Law: of a bundle with one artifact, the manifest itself."""
    if not manifest.variants:
        return manifest
    return replace(
        manifest,
        format=variant.format,
        recipe=variant.recipe,
        artifact=variant.artifact,
        measured=variant.measured,
        variants=(variant,),
    )
