"""What only a process of its own can show: interrupts, kills, closed pipes, and how fast help answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.kill_memorize import Trial
from tests import small_model

from fastweights.inference.memory_file import read_header

PROGRAM = [sys.executable, "-c", "import sys; from fastweights.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model.save(tmp_path_factory.mktemp("models") / "small")


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=120)


def test_an_interrupted_reading_goes_on_to_the_same_bits(model: str, tmp_path: Path) -> None:
    text, file = tmp_path / "long.txt", tmp_path / "x.memory"
    text.write_text("".join(f"{line}. It was the best of times.\n" for line in range(1500)), encoding="utf-8")
    words = ("memorize", str(text), "--model", model, "-o")
    with start(*words, str(file), "--save-every", "0.001") as process:
        while not file.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"-o {file} --save-every 0.001 --resume" in err
    stopped = read_header(file)
    assert not stopped.sources[0].complete
    assert f"{stopped.tokens[0]:,} tokens from 1 sources" in out
    assert run(*words, str(file), "--resume").returncode == 0
    assert run(*words, str(tmp_path / "whole.memory")).returncode == 0
    assert file.read_bytes() == (tmp_path / "whole.memory").read_bytes()


def test_a_killed_reading_leaves_the_old_file_or_a_whole_new_one(model: str, tmp_path: Path) -> None:
    trial = Trial(tmp_path, model, 20_000)
    trial.output.write_bytes(trial.old)
    process = trial.start(trial.new_text, "--force", "--save-every", "0.001")
    while trial.output.read_bytes() == trial.old and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    header = read_header(trial.output)  # refuses a file that is not whole
    assert (header.sources[0].name, header.sources[0].complete) == (trial.new_text, False)
    assert trial.read(trial.new_text, "--resume") == trial.new
    left = [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(left) <= 1, "what a killed process leaves is removed by the next save"


def test_a_reader_who_has_had_enough_is_no_error() -> None:
    with start("rules", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_bad_input_ends_without_a_traceback(tmp_path: Path) -> None:
    done = run("recall", str(tmp_path / "absent.memory"), "Q")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fastweights: there is no memory file '{tmp_path / 'absent.memory'}'\n"


def test_a_memory_that_cannot_be_written_leaves_the_old_one(model: str, tmp_path: Path) -> None:
    """No file of this process may grow beyond a thousand bytes: a full disk, as far as writing goes."""
    text, file = tmp_path / "a.txt", tmp_path / "x.memory"
    text.write_text("It was the best of times.\n", encoding="utf-8")
    file.write_bytes(b"old")
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    program = [sys.executable, "-c", f"{limit}; from fastweights.cli import main; sys.exit(main())"]
    words = ["memorize", str(text), "--model", model, "-o", str(file), "--force"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        f"fastweights: cannot save the memory to '{file}': file too large; the file that was there is unchanged\n"
    )
    assert file.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "x.memory"]


def test_help_needs_no_heavy_package() -> None:
    program = "import sys; from fastweights.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, "memorize", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert not {"torch", "numpy", "rich", "tokenizers", "matplotlib"} & set(done.stderr.split())
