"""WikiText's pages, and the spaces that it puts around signs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastweights.data.wikitext import plain, read_wikitext
from fastweights.errors import UserError

RAW = """
 = Robert Boulter =

 Robert Boulter is an English film , television and theatre actor . He had a " guest " role .

 = = Career = =

 In 2002 , he won ( with others ) a @-@ prize of 1 @,@ 000 @.@ 5 . It 's good ; is it ? Yes : yes !

 = Du Fu =

 Du Fu ( Chinese : 杜甫 ) was the poets ' poet .
""".replace("\n", " \n")


def test_pages_begin_with_titles_of_the_first_level(tmp_path: Path) -> None:
    (tmp_path / "wiki.raw").write_text(RAW, encoding="utf-8")
    pages = list(read_wikitext(tmp_path / "wiki.raw"))
    assert [page.title for page in pages] == ["Robert Boulter", "Du Fu"]
    assert "\n".join(page.raw for page in pages) == RAW[2:]
    assert "= = Career = =" in pages[0].raw
    assert pages[1].text == " = Du Fu =\n\nDu Fu (Chinese: 杜甫) was the poets' poet.\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("film , television . He", "film, television. He"),
        ("a @-@ b 1 @,@ 000 2 @.@ 5", "a-b 1,000 2.5"),
        ('a " guest " role', 'a "guest" role'),
        ("( with others ) [ 1 ] { x }", "(with others) [1] {x}"),
        ("It 's ; is ? Yes : yes ! no", "It's; is? Yes: yes! no"),
        (" = = Career = = \n", " == Career ==\n"),
        ("20 ° C \n and N men", "20°C\nand 1 men"),
    ],
)
def test_spaces_around_signs_go(raw: str, text: str) -> None:
    assert plain(raw) == text


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        list(read_wikitext(tmp_path / "none.raw"))
    (tmp_path / "a.txt").write_text("no page")
    with pytest.raises(UserError, match="has no pages of WikiText"):
        list(read_wikitext(tmp_path / "a.txt"))
