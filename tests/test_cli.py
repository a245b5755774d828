"""The command line: data on standard output, notes on standard error, one sentence for bad input."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import small_model

from fastweights.cli import main, terminal
from fastweights.core.presets import PRESETS
from fastweights.errors import FastweightsError
from fastweights.evaluate import picture
from fastweights.inference.session import Session
from fastweights.models import pretrained

TEXT = "It was the best of times, it was the worst of times.\n" * 40


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Its output, which must be one JSON value."""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model.save(tmp_path_factory.mktemp("models") / "bpe", tokenizer="bpe4096")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, in an empty folder but for two texts."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    Path("b.md").write_text("# Notes\n\nNothing.\n", encoding="utf-8")

    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["fastweights", *words])
        capsys.readouterr()
        try:
            status = main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return call


def test_help_lists_every_command(run: Run) -> None:
    done = run("--help")
    assert done.status == 0
    for command in [
        "memorize",
        "recall",
        "inspect",
        "generate",
        "models",
        "rules",
        "explain",
        "check",
        "train",
        "compare",
        "report",
        "evaluate",
        "demo",
    ]:
        assert command in done.out


def test_a_memory_from_reading_to_asking(run: Run, model: str) -> None:
    done = run("memorize", "a.txt", "b.md", "-o", "x.memory", "--model", model)
    assert (done.status, done.out) == (0, f"x.memory: 2,139 tokens from 2 sources in {done.out.split(' in ')[1]}")
    assert "tokens/s" in done.err

    before = Path("x.memory").read_bytes()
    one, two = run("recall", "x.memory", "What?"), run("recall", "x.memory", "What?", "When?", "--max-tokens", "5")
    assert (one.status, two.status, two.err) == (0, 0, "")
    assert len(one.out.splitlines()) == 1
    assert len(two.out.splitlines()) == 2
    answers = run("recall", "x.memory", "What?", "--json", "--max-tokens", "5").json()
    assert [answer["question"] for answer in answers["answers"]] == ["What?"]
    assert set(answers["answers"][0]) == {"question", "answer", "ended", "log_probability"}

    done = run("inspect", "x.memory", "--passages", "3")
    for part in ("2,139 tokens", "a.txt", "b.md", "surprise, 50.0% below", "norm of layer 0", "most surprising"):
        assert part in done.out
    header = run("inspect", "x.memory", "--json").json()
    assert [source["name"] for source in header["sources"]] == ["a.txt", "b.md"]
    assert header["tokens"] == [2139]

    words = ("generate", "Once", "--memory", "x.memory", "--max-tokens", "6")
    done = run(*words)
    assert done.out.startswith("Once")
    assert run(*words).out == done.out
    assert run(*words, "--json").json()["text"] == done.out.removeprefix("Once").removesuffix("\n")
    assert run(*words, "--seed", "1").out != done.out
    assert run("generate", "Once", "--model", model, "--max-tokens", "6").out != done.out
    assert Path("x.memory").read_bytes() == before


def test_memorize_as_json_and_wrong_bytes(run: Run, model: str) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9\n" * 3)
    done = run("memorize", "latin.txt", "-o", "x.memory", "--model", model, "--json")
    found = done.json()
    assert found["replaced_bytes"] == {"latin.txt": 3}
    assert found["tokens"] == found["tokens_this_time"] == 21
    assert found["finished"]
    assert found["state_bytes"] > 0
    assert "3 bytes that are not UTF-8" in done.err


def test_memorize_reads_folders_patterns_and_standard_input(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    done = run("memorize", "-", ".", "*.md", "-o", "x.memory", "--model", model, "--json")
    assert [source["name"] for source in done.json()["sources"]] == ["standard input", "a.txt", "b.md", "b.md"]


def test_an_interrupt_saves_and_says_how_to_go_on(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("memorize", "a.txt", "b.md", "-o", "x.memory", "--model", model)
    run(*words[:-4], "-o", "whole.memory", "--model", model)
    read, calls = Session.read, 0

    def interrupted(self: Session, text: Any, **options: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return read(self, text, **options)

    monkeypatch.setattr(Session, "read", interrupted)
    done = run(*words)
    assert done.status == 130
    assert "2,120 tokens from 1 sources" in done.out
    assert done.err.splitlines()[-1].endswith(
        f"go on with: fastweights memorize a.txt b.md -o x.memory --model {model} --resume"
    )
    done = run(*words, "--resume")
    assert done.status == 0
    assert "'a.txt' has been read already" in done.err
    assert Path("x.memory").read_bytes() == Path("whole.memory").read_bytes()


def test_an_existing_output_is_kept_unless_forced(run: Run, model: str) -> None:
    words = ("memorize", "b.md", "-o", "x.memory", "--model", model)
    Path("x.memory").write_text("mine", encoding="utf-8")
    assert run(*words).status == 2
    assert Path("x.memory").read_text(encoding="utf-8") == "mine"
    assert run(*words, "--force").status == 0
    assert run("inspect", "x.memory").status == 0


@pytest.fixture(scope="module")
def memory(model: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A memory file of the small model."""
    from fastweights.inference.opening import open_model

    opened = open_model(model)
    session = Session(opened.model, opened.tokenizer, model_name=opened.name)
    session.read(TEXT[:100], name="text")
    path = tmp_path_factory.mktemp("memory") / "x.memory"
    session.save(path)
    return path.read_bytes()


BAD = {
    "missing file": (["memorize", "absent.txt", "-o", "y", "--model", "MODEL"], "'absent.txt' does not exist"),
    "nothing named": (["memorize", "-o", "y", "--model", "MODEL"], "nothing to read"),
    "no file matches": (["memorize", "*.none", "-o", "y", "--model", "MODEL"], "'*.none'"),
    "empty file": (["memorize", "empty.txt", "-o", "y", "--model", "MODEL"], "'empty.txt' is empty"),
    "binary file": (["memorize", "binary", "-o", "y", "--model", "MODEL"], "'binary' is binary"),
    "nowhere to write": (["memorize", "a.txt", "-o", "no/y", "--model", "MODEL"], "does not exist"),
    "nothing to resume": (["memorize", "a.txt", "-o", "y", "--model", "MODEL", "--resume"], "leave --resume out"),
    "no such model": (["memorize", "a.txt", "-o", "y", "--model", "nedle"], "no model or folder named 'nedle'"),
    "missing memory": (["recall", "absent.memory", "Q"], "there is no memory file 'absent.memory'"),
    "foreign memory": (["recall", "a.txt", "Q"], "'a.txt' is not a memory file"),
    "altered memory": (["inspect", "altered.memory"], "'altered.memory' is damaged"),
    "truncated memory": (["inspect", "short.memory"], "'short.memory' is damaged"),
    "memory of another model": (["recall", "x.memory", "Q", "--model", "OTHER"], "belongs to another model"),
    "memory of another chunk": (["recall", "x.memory", "Q", "--model", "CHUNK"], "chunk_size is 16 where"),
    "no question": (["recall", "x.memory"], "no question"),
    "empty question": (["recall", "x.memory", ""], "the question is empty"),
    "no tokens": (["recall", "x.memory", "Q", "--max-tokens", "0"], "at least 1"),
    "bad temperature": (["generate", "a", "--model", "MODEL", "--temperature", "-1"], "temperature must be"),
    "no such recipe": (["train", "recal", "--out", "run"], "did you mean recall?"),
    "no such setting": (["train", "recall", "--out", "run", "--set", "optimizer.lr=1"], "optimiser"),
    "no such rule": (["check", "titan"], "did you mean titans?"),
    "no such rule to explain": (["explain", "titan"], "no rule named 'titan'; did you mean titans?"),
    "no cases": (["evaluate", "cases", "absent.jsonl", "--json", "y", "--model", "MODEL"], "absent.jsonl"),
    "bad case": (["evaluate", "cases", "bad.jsonl", "--json", "y", "--model", "MODEL"], "line 2 of 'bad.jsonl'"),
    "no such length": (["evaluate", "vt", "--lengths", "8X", "--json", "y", "--model", "MODEL"], "not '8X'"),
    "length of 0": (["evaluate", "vt", "--lengths", "0K", "--json", "y", "--model", "MODEL"], "not '0K'"),
    "length too short": (["evaluate", "vt", "--lengths", "64", "--json", "y", "--model", "MODEL"], "64 tokens are too"),
    "no needles": (["demo", "--needles", "0", "--model", "MODEL"], "at least one"),
    "too short": (["demo", "--tokens", "9", "--model", "MODEL"], "do not fit into 9 tokens"),
    "no such text": (["demo", "--text", "absent.txt", "--model", "MODEL"], "'absent.txt' does not exist"),
    "no place for the picture": (["demo", "--picture", "no/p.png", "--model", "MODEL"], "'no' for the picture"),
}


@pytest.mark.parametrize(("words", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_sentence(
    run: Run, model: str, memory: bytes, tmp_path: Path, words: list[str], sentence: str
) -> None:
    Path("empty.txt").touch()
    Path("binary").write_bytes(bytes(range(256)))
    Path("x.memory").write_bytes(memory)
    Path("altered.memory").write_bytes(memory[:-1] + bytes([memory[-1] ^ 1]))
    Path("short.memory").write_bytes(memory[:-9])
    good = json.dumps({"context": "c", "question": "q", "answer": "a"})
    Path("bad.jsonl").write_text(f"{good}\n{{}}\n", encoding="utf-8")
    if "OTHER" in words:
        small_model.save(tmp_path / "OTHER", seed=1)
    if "CHUNK" in words:
        small_model.save(tmp_path / "CHUNK", chunk_size=4)
    before = {path.name for path in Path().iterdir()}
    done = run(*(model if word == "MODEL" else word for word in words))
    assert (done.status, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("fastweights: ")
    assert sentence in last
    assert "Traceback" not in done.err
    assert {path.name for path in Path().iterdir()} == before


@pytest.mark.parametrize("words", [["--nothing"], [], ["recall"], ["demo", "--tokens", "many"], ["evaluate"]])
def test_unknown_and_missing_arguments_are_refused(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.status, done.out) == (2, "")
    assert done.err


def test_other_failures_have_another_status(run: Run, monkeypatch: pytest.MonkeyPatch, memory: bytes) -> None:
    Path("x.memory").write_bytes(memory)

    def fail(*_: object, **__: object) -> None:
        raise FastweightsError("the model's logits are not finite")

    monkeypatch.setattr(Session, "ask", fail)
    assert run("recall", "x.memory", "Q")[::2] == (1, "fastweights: the model's logits are not finite\n")


def test_an_interrupt_elsewhere_ends_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "list_models", interrupt)
    assert run("models") == (130, "", "interrupted\n")


def test_rules(run: Run) -> None:
    found = run("rules", "--json").json()
    assert [rule["name"] for rule in found] == list(PRESETS)
    deltanet = next(rule for rule in found if rule["name"] == "deltanet")
    assert (deltanet["tier"], deltanet["state_bytes"], deltanet["chunk_size"]) == ("delta", 4 * 64 * 64, 1)
    done = run("rules")
    assert all(name in done.out for name in PRESETS)
    assert "Residual(MLP())" in done.out
    assert not [line for line in done.out.splitlines() if line != line.rstrip()]


def test_explain(run: Run) -> None:
    done = run("explain", "yaad")
    assert (done.status, done.err) == (0, "")
    for part in ("It's All Connected", "eq. 26", "A_t = retain_t · A_{t−1} − lr_t · u_t", "threshold", "262,144 bytes"):
        assert part in done.out
    found = run("explain", "yaad", "--json").json()
    assert (found["name"], found["tier"], found["state_bytes"]) == ("yaad", "dual", 262_144)
    assert [gate["name"] for gate in found["gates"]] == ["lr", "retain", "threshold"]
    assert found["papers"][0]["arxiv"] == "2504.13173"


def test_models(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(pretrained, "SHIPPED", shipped)
    done = run("models")
    assert (done.status, done.out) == (0, "")
    assert "no models are shipped" in done.err
    small_model.save(shipped / "small")
    assert "Random weights, for tests." in run("models").out
    found = run("models", "--json").json()
    assert (found[0]["name"], found[0]["config"]["wiring"]) == ("small", "lmm")


def test_check_tells_whether_all_is_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastweights.core.conformance import Finding, Report
    from fastweights.evaluate import check

    good = Finding("4 causal", 4, 7, True, "bit-identical", 0.0)
    bad = Finding("5 padding irrelevant", 4, 7, False, "left error 1", 9.0)
    reports = [("titans", Report("titans", (good,)))]
    monkeypatch.setattr(check, "check_everything", lambda names, quick, jobs: iter(reports))
    assert run("check").status == 0
    reports.append(("broken", Report("broken", (good, bad))))
    done = run("check", "--quick")
    assert done.status == 1
    assert "left error 1" in done.out
    found = run("check", "--json")
    assert found.status == 1
    assert [(report["name"], report["ok"]) for report in found.json()["reports"]] == [
        ("titans", True),
        ("broken", False),
    ]


def test_train(run: Run) -> None:
    settings = ["--set", "stages.0.steps=2", "stages.1.steps=1", "--set", "evaluation.probes.0.length=64"]
    done = run("train", "recall", "--out", "run", *settings, "--json")
    assert done.status == 0, done.err
    found = done.json()
    assert (found["step"], found["finished"], found["model"]) == (3, True, "run/model")
    assert run("train", "recall", "--out", "run", *settings).status == 2
    assert run("train", "recall", "--out", "run", *settings, "--resume").out == "run/model\n"


def test_cases(run: Run, model: str) -> None:
    case = {"context": TEXT, "question": "What was it?", "answer": ["best"]}
    Path("cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    words = ("evaluate", "cases", "cases.jsonl", "--model", model, "--json", "out.json", "--max-tokens", "4")
    done = run(*words)
    assert (done.status, done.out) == (0, "0 of 1 right; results in out.json\n")
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["done"] == 1
    assert run(*words).status == 0


def test_a_task_is_measured_and_goes_on_where_it_was(run: Run, bpe_model: str) -> None:
    words = ("evaluate", "niah_single_1", "--model", bpe_model, "--samples", "2", "--json", "out.json")
    done = run(*words, "--lengths", "512")
    assert done.status == 0, done.err
    assert [line.split() for line in done.out.splitlines()] == [
        ["tokens", "samples", "score", "percent", "95", "%", "interval"],
        ["512", "2", "string_match_all", "0.0", "0.0", "to", "65.8"],
    ]
    first = Path("out.json").read_text(encoding="utf-8")
    assert run(*words, "--lengths", "512").out == done.out
    assert Path("out.json").read_text(encoding="utf-8") == first
    assert [line.split()[0] for line in run(*words, "--lengths", "512,1K").out.splitlines()[1:]] == ["512", "1,024"]


def test_demo(run: Run, bpe_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("demo", "--model", bpe_model, "--tokens", "600", "--needles", "2", "--documents", "2")
    done = run(*words)
    assert done.status == 0
    for part in ("depth", "expected", "answered", "right", "0 of 4 right", "tokens/s", "the same", "peak size"):
        assert part in done.out
    assert Path("demo.png").is_file()
    found = run(*words, "--json", "--picture", "p.png").json()
    assert (found["tokens"], found["documents"], found["needles"], found["right"]) == (600, 2, 2, 0)
    assert [answer["depth"] for answer in found["answers"]] == [0, 100, 0, 100]
    assert found["state_bytes_start"] == found["state_bytes_end"]
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    done = run(*words, "--text", "a.txt", "--picture", "none.png")
    assert "fastweights[plot]" in done.err
    assert not Path("none.png").exists()


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    with terminal.Meter("reading") as meter:
        meter.show(0.25, "10 tokens")
        meter.show(None, "[not markup]")
    assert capsys.readouterr() == ("", "reading 25% · 10 tokens\nreading · [not markup]\n")


def test_sizes_are_readable() -> None:
    assert [terminal.bytes_text(size) for size in (0, 999, 1536, 5 * 2**20)] == [
        "0 bytes",
        "999 bytes",
        "1.5 KiB",
        "5.0 MiB",
    ]


def test_control_characters_of_a_text_do_not_reach_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.say("a\x1b[2Jb\tc")
    terminal.table(("text", "n"), [("\x1b]0;x\x07", 1_000), (None, 2.0), (True, 3)])
    out = capsys.readouterr().out
    assert "a\ufffd[2Jb\tc" in out
    assert "\x1b]" not in out
