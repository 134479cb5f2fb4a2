"""From a bundle's folder to an open Runtime: check every byte, then load.

Until the hashes have been checked this needs the standard library alone and loads nothing from
the bundle: the tokenizer library, numpy and the engine are imported after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes import backends
from runtimes.bundle.variants import choose
from runtimes.contract import BackendOptions
from runtimes.errors import ContextError, IntegrityError, UsageError
from runtimes.host.limits import default_threads
from runtimes.trust.manifest import MANIFEST_NAME, Manifest, read_manifest
from runtimes.trust.verify import BytesProgress, HashCache, no_progress, verify_files

if TYPE_CHECKING:
    from runtimes.generation.runtime import Runtime

TOKENIZER_NAME = "tokenizer.json"  # at the top of the bundle
REPRODUCIBLE_CHUNK_TOKENS = 64  # guessed: fewer cost speed, more are computed again more often
MAX_CONTEXT_TOKENS = 131_072  # specified: the longest context that starpack offers


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open a bundle's model; the fields not named here are those of BackendOptions.

    context_tokens: the manifest's where None. threads: this machine's cores where None. variant:
    where several share the bundle, the name of one, or "auto" for the best that the free memory is
    enough for; None for the best where it was packed. reproducible: see Runtime; chunks then have
    REPRODUCIBLE_CHUNK_TOKENS at the most.
    """

    context_tokens: int | None = None
    threads: int | None = None
    provider: str = "cpu"
    gpu_layers: int = 0
    chunk_tokens: int = 512
    flash_attention: bool | None = None
    reproducible: bool = False
    variant: str | None = None

    def for_backend(self, manifest: Manifest) -> BackendOptions:
        """The same with nothing left open. Raises ContextError, UsageError."""
        context, threads, chunk = self.context_tokens, self.threads, self.chunk_tokens
        options = BackendOptions(
            context_tokens=manifest.context_tokens if context is None else context,
            threads=default_threads() if threads is None else threads,
            provider=self.provider,
            gpu_layers=self.gpu_layers,
            chunk_tokens=min(chunk, REPRODUCIBLE_CHUNK_TOKENS) if self.reproducible else chunk,
            flash_attention=self.flash_attention,
            reproducible=self.reproducible,
        )
        _check_options(options)
        return options


DEFAULTS = OpenOptions()


def open_bundle(
    bundle: Path,
    options: OpenOptions = DEFAULTS,
    *,
    manifest: Manifest | None = None,
    verify: bool = True,
    cache: HashCache | None = None,
    progress: BytesProgress = no_progress,
) -> Runtime:
    """Check the bundle in folder `bundle` and load its model.

    manifest: the bundle's own, for a caller that has read it. `verify=False` skips the hashes, for
    a caller that has just checked them; `cache` skips those of files that nobody has touched since.
    Raises IntegrityError for a bundle that is not intact, ContextError, UsageError, and DeviceError
    where the engine or its memory is missing.
    """
    manifest = choose(manifest or read_manifest(bundle), options.variant, options.provider)
    for_backend = options.for_backend(manifest)
    _check_parts(bundle, manifest)
    if verify:
        verify_files(bundle, manifest, progress, cache)
    return _load(bundle, manifest, for_backend)


def _load(bundle: Path, manifest: Manifest, options: BackendOptions) -> Runtime:
    from runtimes.generation.runtime import Runtime
    from runtimes.prompts.tokenizer import Tokenizer

    tokenizer = Tokenizer(bundle / TOKENIZER_NAME, manifest.special_ids)
    model = bundle / manifest.artifact
    backend = backends.open_model(manifest.format, model, manifest.window, options)
    try:
        if backend.vocab_size != manifest.vocab_size:
            raise IntegrityError(
                f"the model has a vocabulary of {backend.vocab_size}",
                where=model,
                expected=f"{manifest.vocab_size}, as the manifest says",
                remedy="pack the bundle again",
            )
        return Runtime(backend, tokenizer, manifest.special_ids, options.reproducible)
    except BaseException:
        backend.close()
        raise


def _check_options(options: BackendOptions) -> None:
    if not 0 < options.context_tokens <= MAX_CONTEXT_TOKENS:
        raise ContextError(
            f"a context of {options.context_tokens} tokens",
            expected=f"1 to {MAX_CONTEXT_TOKENS} tokens",
        )
    for name, least in (("threads", 1), ("gpu_layers", 0), ("chunk_tokens", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"{name} is {getattr(options, name)}", expected=f"{least} or more")


def _check_parts(bundle: Path, manifest: Manifest) -> None:
    """The parts that are loaded must be among the files that are hashed."""
    paths = {entry.path for entry in manifest.files}
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    for part in (TOKENIZER_NAME, manifest.artifact):
        if part not in paths | folders:
            raise IntegrityError(
                f"the manifest does not list {part!r}, which the bundle needs",
                where=bundle / MANIFEST_NAME,
                remedy="pack the bundle again",
            )
