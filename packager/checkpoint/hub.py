"""Download a checkpoint from the Hugging Face hub: the only code of starpack that uses a network.

Only weights in safetensors, configuration, tokenizer, licence and model card are taken; pickles
never. The revision becomes a commit before anything is downloaded, and what came is recorded in
starpack-fetch.json beside it.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packager.checkpoint.lora import ADAPTER_WEIGHTS_NAME
from packager.checkpoint.reader import FETCH_RECORD_NAME
from packager.checkpoint.safetensors_reader import INDEX_NAME, SINGLE_NAME
from packager.core.atomic import file_entry, write_json
from packager.core.errors import (
    Cancelled,
    CheckpointError,
    IntegrityError,
    OfflineError,
    UsageError,
)
from packager.core.records import Progress, no_progress
from runtimes.trust.entries import FileEntry

WANTED = re.compile(
    r"[\w.-]+\.safetensors|model\.safetensors\.index\.json"
    r"|(config|generation_config|adapter_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
    r"|(LICEN[CS]E|NOTICE|README|COPYING)[\w.-]*",
    re.IGNORECASE,
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """What was fetched: `commit` is what the revision stood for on `date` (UTC, ISO 8601)."""

    repo: str
    commit: str
    files: tuple[FileEntry, ...]
    date: str


def fetch(repo: str, revision: str, out: Path, *, progress: Progress = no_progress) -> FetchRecord:
    """Download `repo` ("org/name") at `revision` (branch, tag or commit) into the new folder `out`.

    Files gather in `out`.partial, which a later call continues, and become `out` when all are
    there and have the hashes that the hub states. Progress counts bytes. Raises UsageError for a
    name or revision that is not there, OfflineError without a network, CheckpointError for a
    repository without safetensors, IntegrityError for a file that came damaged.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OfflineError(
            "fetching needs the network, which HF_HUB_OFFLINE forbids",
            where=repo,
            remedy="unset HF_HUB_OFFLINE, or copy the checkpoint's folder here by other means",
        )
    if out.exists():
        raise UsageError(
            "the output is already there",
            where=out,
            expected="a folder that does not exist",
            remedy="name another, or remove it",
        )
    from huggingface_hub import HfApi  # heavy, and needed here alone

    hub = HfApi()
    with _explained(repo, revision):
        info = hub.model_info(repo, revision=revision, files_metadata=True)
    if info.sha is None:
        raise IntegrityError(
            f"the hub does not say which commit {revision} is",
            where=repo,
            expected="a commit",
            remedy="name a commit with --revision",
        )
    wanted = _choose(info.siblings or [], repo)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    total = sum(file.size or 0 for file in wanted)
    done = 0
    entries = []
    for file in wanted:
        progress("fetch", done, total)
        with _explained(repo, info.sha):
            hub.hf_hub_download(repo, file.rfilename, revision=info.sha, local_dir=partial)
        entries.append(_verified(partial, file))
        done += file.size or 0
    progress("fetch", done, total)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = FetchRecord(repo, info.sha, tuple(entries), date)
    _remove_others(partial, {entry.path for entry in entries})
    write_json(partial / FETCH_RECORD_NAME, asdict(record))
    os.rename(partial, out)
    return record


def _choose(siblings: Sequence[Any], repo: str) -> list[Any]:
    """The hub's files that are taken, smallest first: a fault shows before the long download.

    Names come from the hub: WANTED matches no separator, so none can leave the folder.
    """
    named = {file.rfilename: file for file in siblings if WANTED.fullmatch(file.rfilename)}
    weights = {SINGLE_NAME} & set(named)
    if not weights and INDEX_NAME in named:
        weights = {INDEX_NAME, *(name for name in named if SHARD.fullmatch(name))}
    weights |= {ADAPTER_WEIGHTS_NAME} & set(named)
    if not weights:
        raise CheckpointError(
            "the repository has no weights in safetensors",
            where=repo,
            expected=f"{SINGLE_NAME}, {INDEX_NAME} or {ADAPTER_WEIGHTS_NAME}",
            remedy="choose a revision that has them; pickles (*.bin) are never downloaded",
        )
    # Some repositories hold the same weights again, in other shards or under other names.
    others = {name for name in named if not name.endswith((".safetensors", INDEX_NAME))}
    wanted = [named[name] for name in weights | others]
    return sorted(wanted, key=lambda file: (file.size or 0, file.rfilename))


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove the hub's notes for resuming, and what an earlier call took of another revision."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def _verified(folder: Path, file: Any) -> FileEntry:
    """The entry of a downloaded file; IntegrityError where it is not what the hub describes."""
    entry = file_entry(folder, file.rfilename)
    stated = file.lfs.sha256 if file.lfs else entry.sha256
    if entry.sha256 != stated or entry.bytes != (entry.bytes if file.size is None else file.size):
        (folder / file.rfilename).unlink()
        raise IntegrityError(
            f"{file.rfilename} came damaged: {entry.bytes} bytes, SHA-256 {entry.sha256}",
            where=folder,
            expected=f"{file.size} bytes, SHA-256 {stated}",
            remedy="run the same command again: it fetches this file anew and keeps the others",
        )
    return entry


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn the hub's failures, and an interruption, into ours."""
    from huggingface_hub import errors

    where = f"{repo} at {revision}"
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled(
            "the download was interrupted",
            where=where,
            remedy="run the same command again: it resumes",
        ) from None
    except errors.GatedRepoError as error:
        raise UsageError(
            f"the hub asks for its terms to be accepted first: {error}",
            where=where,
            expected="an account with access",
            remedy="accept the terms on the model's page, then `hf auth login`",
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise UsageError(
            f"the hub has no such model or revision: {error}",
            where=where,
            expected="ORG/NAME and a branch, tag or commit",
            remedy="check both on the model's page; for a private one, `hf auth login`",
        ) from error
    except (
        OSError,
        # the root of whichever HTTP library this release is built on; not declared as exported
        errors.HTTPError,  # type: ignore[attr-defined]
        errors.EntryNotFoundError,
        errors.XetDownloadError,
    ) as error:
        raise OfflineError(
            f"the hub could not be reached: {error}",
            where=where,
            expected="a network, and free space on the disk",
            remedy="run the same command again where there is a network: it resumes; or "
            "copy the checkpoint's folder here by other means",
        ) from error
