"""Which files of a folder become context: the order, the budget, and what is never read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import UsageError
from runtimes.prompts import repo_context
from runtimes.prompts.repo_context import choose, path_in, rank, read_in

EDITED = "app/views/page.py"


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# this is {path}\n")


def chosen_paths(folder: Path, text: str = "", budget: int = 10_000) -> list[str | None]:
    return [file.path for file in choose(folder, EDITED, text, len, budget).files]


def test_imports_come_first_then_the_same_name_language_and_nearness() -> None:
    text = """\
import os
from app.models import (
    user,  # a comment
    Order,
)
from . import helpers
"""
    ranked = [
        "app/models/user.py",  # three of its parts are named
        "app/views/helpers.py",  # two are, and it is nearer than the next
        "app/models/__init__.py",  # its folder is named
        "tests/views/test_page.py",
        "app/views/list.py",
        "app/forms/page_form.py",
        "app/forms/other.py",
        "zoo.py",
        "app/views/list.js",
    ]
    shuffled = [*ranked, EDITED]
    random.Random(1).shuffle(shuffled)
    assert rank(shuffled, EDITED, text) == ranked


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ('#include "util/text.h"', "util/text.h"),
        ("const t = require('./util/text');", "util/text.js"),
        ("import { x } from '../util/text'", "util/text.ts"),
        ('import (\n\t"fmt"\n\t"acme/util/text"\n)', "util/text.go"),
        ("use crate::util::text;", "util/text.rs"),
        ("from util \\\n    import text", "util/text.py"),
        ("import com.acme.util.Text;", "util/Text.java"),
        ("import util", "util/__init__.py"),
    ],
)
def test_imports_of_many_languages(line: str, path: str) -> None:
    others = [f"app/views/near.{path.rsplit('.', 1)[1]}", path]
    assert rank(others, EDITED, line + "\n")[0] == path
    assert rank(others, EDITED, "x = 'text, util and Text'\n" + line.upper())[0] != path


@given(st.lists(st.text("ab./_", min_size=1), unique=True), st.text("import abc(\n"), st.randoms())
def test_the_order_depends_on_the_paths_and_the_text_alone(paths, text, shuffle) -> None:
    paths = [path for path in paths if path.strip("./")]
    ranked = rank(paths, "a/b.py", text)
    shuffle.shuffle(paths)
    assert rank(paths, "a/b.py", text) == ranked
    assert sorted(ranked) == sorted(path for path in paths if path != "a/b.py")


def test_the_most_relevant_is_last_and_all_fit_into_the_budget(tmp_path: Path) -> None:
    write(tmp_path, EDITED, "app/views/list.py", "app/other.py", "b.py")
    write(tmp_path, "app/views/long.py")
    (tmp_path / "app/views/long.py").write_text("x" * 500)
    expected = ["b.py", "app/other.py", "app/views/list.py"]
    assert chosen_paths(tmp_path, budget=200) == expected
    chosen = choose(tmp_path, EDITED, "", len, 200)
    assert chosen.tokens == sum(len(f"{f.path}\n{f.text}") + 1 for f in chosen.files) <= 200
    assert (chosen.left_out, chosen.is_complete) == (1, True)
    assert choose(tmp_path, EDITED, "", len, chosen.tokens).files == chosen.files
    assert len(choose(tmp_path, EDITED, "", len, chosen.tokens - 1).files) < 3
    assert chosen_paths(tmp_path, budget=0) == []


def test_what_is_no_source_code_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, EDITED, "ok.py", ".git/x.py", ".hidden.py", "node_modules/x.js", "notes.txt")
    write(tmp_path, "empty.py")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "binary.py").write_bytes(b"a\0b")
    (tmp_path / "latin.py").write_bytes(b"\xe9")
    (tmp_path / "large.py").write_bytes(b"x" * (repo_context.MAX_FILE_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / os.fsdecode(b"\xff.py")).write_text("x")
    assert chosen_paths(tmp_path) == ["ok.py"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    write(outside, "secret.py")
    write(root, EDITED, "ok.py")
    (root / "file.py").symlink_to(outside / "secret.py")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    assert chosen_paths(root) == ["ok.py"]
    assert chosen_paths(tmp_path / "root" / "loop") == ["ok.py"]  # the folder itself may be one
    for path in ("file.py", "folder/secret.py"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_in(root, path)


def test_a_folder_that_becomes_a_link_in_between_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    write(outside, "a.py")
    write(root, EDITED, "sub/a.py")
    listed = repo_context._source_files

    def swap(*arguments):
        found = listed(*arguments)
        (root / "sub").rename(root / "old")
        (root / "sub").symlink_to(outside)
        return found

    monkeypatch.setattr(repo_context, "_source_files", swap)
    assert chosen_paths(root) == []


def test_what_is_looked_at_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, EDITED, "a.py", "b.py", "c.py")
    monkeypatch.setattr(repo_context, "MAX_TRIED_FILES", 2)
    chosen = choose(tmp_path, EDITED, "", len, 1000)
    assert (len(chosen.files), chosen.is_complete) == (2, False)
    monkeypatch.setattr(repo_context, "MAX_NAMES", 3)
    assert not choose(tmp_path, EDITED, "", len, 1000).is_complete


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "a/b.py")
    assert path_in(tmp_path, "./a/b.py") == path_in(tmp_path, str(tmp_path / "a/b.py")) == "a/b.py"
    assert read_in(tmp_path, "a/b.py") == "# this is a/b.py\n"
    for path in ("../x.py", "a/../../x.py", "/etc/passwd", ".", ""):
        with pytest.raises(UsageError):
            path_in(tmp_path, path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_in(tmp_path, "absent.py")
    with pytest.raises(UsageError):
        choose(tmp_path / "absent", EDITED, "", len, 10)
    (tmp_path / "latin.py").write_bytes(b"\xe9")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_in(tmp_path, "latin.py")
