"""A model whose memory grows: a session reads and asks as ever, a memory file is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastweights.core import presets
from fastweights.data.text import find_sources
from fastweights.data.tokenizer import ByteTokenizer
from fastweights.inference.memorize import memorize
from fastweights.inference.memory_file import MemoryFileError
from fastweights.inference.session import Session
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel


@pytest.fixture
def session() -> Session:
    tokenizer = ByteTokenizer()
    rule = presets.softmax_attention()
    model = LanguageModel(ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, heads=2, rule=rule, wiring="lmm"))
    return Session(model, tokenizer)


def test_a_session_reads_asks_and_forks(session: Session) -> None:
    session.read("One of the special magic numbers is 7. " * 9)
    before = session.tokens
    assert session.ask("What is it?", max_tokens=3).ids
    fork = session.fork()
    fork.read("more")
    assert session.tokens == before
    assert fork.tokens == (before[0] + 4,)
    assert session.health().surprise["0.99"] != (0.0,)


def test_a_memory_file_is_refused_before_anything_is_read(session: Session, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("a text")
    with pytest.raises(MemoryFileError, match="grows with the text"):
        memorize(session, find_sources([str(text)]), tmp_path / "a.memory")
    assert session.tokens == (0,)
    with pytest.raises(MemoryFileError, match="grows with the text"):
        session.save(tmp_path / "a.memory")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
