"""Lines and rows: whatever their ends and lengths, plain or compressed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fastweights.data.lines import read_lines, read_rows
from fastweights.data.text import BLOCK_BYTES, find_sources
from fastweights.errors import UserError


def lines(path: Path, content: str) -> list[str]:
    path.write_bytes(content.encode())
    (source,) = find_sources([str(path)])
    return list(read_lines(source))


@pytest.mark.parametrize(
    ("content", "want"),
    [("a\nb\n", ["a", "b"]), ("a\r\n\r\nb", ["a", "", "b"]), ("a", ["a"]), ("\n\na\n", ["", "", "a"])],
)
def test_lines_have_no_ends(content: str, want: list[str], tmp_path: Path) -> None:
    assert lines(tmp_path / "a.txt", content) == want


def test_a_line_may_be_longer_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    want = ["é" * 2 * BLOCK_BYTES, "x" * (BLOCK_BYTES - 1), "", "y" * 3 * BLOCK_BYTES]
    assert lines(tmp_path / "a.txt", "\r\n".join(want)) == want


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_rows_of_a_table(name: str, tmp_path: Path) -> None:
    content = b'a,"b, c"\r\n\r\n1,2\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_rows(tmp_path / name)) == [["a", "b, c"], ["1", "2"]]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,"b\n1,2\n')
    with pytest.raises(UserError, match=r"a\.csv' is not a table in CSV"):
        list(read_rows(tmp_path / "a.csv"))
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        list(read_rows(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="is empty"):
        list(read_rows(tmp_path / "empty.csv"))
