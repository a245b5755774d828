"""`kill -9` during `memorize`, again and again: the memory file is always the old one or a whole new one.

    python benchmarks/kill_memorize.py [--model needle] [--kills 20] [--tokens 60000] [--seed 0]

`memorize --force` reads a new text over a memory of an old one, saves as often as it can, and is killed at a random
moment. After each kill the file is verified, and must hold one of the two texts. In the end the newest file that a
killed process has left is gone on from with `--resume`, and must become what an undisturbed reading gives, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastweights.data.documents import novels, open_novel
from fastweights.inference.memory_file import read_header

PROGRAM = [sys.executable, "-c", "import sys; from fastweights.cli import main; sys.exit(main())", "memorize"]


class Trial:
    """Two texts, a model, and the file that must never be broken."""

    def __init__(self, folder: Path, model: str, characters: int) -> None:
        """Write the texts and read each of them once, undisturbed."""
        self.model, self.output = model, folder / "reading.memory"
        self.old_text, self.new_text = str(folder / "old.txt"), str(folder / "new.txt")
        text = "".join(open_novel(novels()[0].name))
        Path(self.old_text).write_text(text[:4096], encoding="utf-8")
        Path(self.new_text).write_text(text[4096 : 4096 + characters], encoding="utf-8")
        self.old = self.read(self.old_text)
        began = time.monotonic()
        self.new = self.read(self.new_text, "--save-every", "0.001")
        self.seconds = time.monotonic() - began
        self.partial: bytes | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `fastweights memorize`."""
        command = [*PROGRAM, *arguments, "--model", self.model, "-o", str(self.output)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def read(self, *arguments: str) -> bytes:
        """Read undisturbed over whatever is there; returns the file."""
        process = self.start(*arguments, *(() if "--resume" in arguments else ("--force",)))
        assert process.wait() == 0, f"exit status {process.returncode}"
        return self.output.read_bytes()

    def kill(self, after: float) -> str:
        """Read the new text over the old file, kill after some seconds, verify; returns what the file is then."""
        self.output.write_bytes(self.old)
        process = self.start(self.new_text, "--force", "--save-every", "0.001")
        time.sleep(after)
        process.kill()
        process.wait()
        header = read_header(self.output)  # refuses a file that is not whole
        found = self.output.read_bytes()
        if header.sources[0].name == self.old_text:
            assert found == self.old
            return "the old file"
        assert header.sources[0].name == self.new_text
        if not header.sources[0].complete:
            self.partial = found
        return f"a new file of {header.tokens[0]:,} tokens"


def main() -> None:
    """Kill, verify, and resume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="needle")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=60_000, help="length of the new text, about")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name), arguments.model, int(3.6 * arguments.tokens))
        old = 0
        for number in range(arguments.kills):
            left = trial.kill(rng.uniform(0, trial.seconds))
            old += left == "the old file"
            print(f"kill {number + 1}: {left}", flush=True)
        assert trial.partial is not None, "every kill came too early to leave a new file: give more tokens"
        trial.output.write_bytes(trial.partial)
        assert trial.read(trial.new_text, "--resume") == trial.new, "the resumed reading differs"
    print(
        f"{arguments.kills} kills: {old} left the old file, {arguments.kills - old} a new one, all whole; resumed: same"
    )


if __name__ == "__main__":
    main()
