"""Put the one file of ttt-lm-pytorch, at a pinned commit, into the peers' environment.

    python tests_peers/fetch_ttt.py [FILE]

It is on no package index, so it comes from its repository, or from a FILE that is already here. Whatever does not have
the pinned SHA-256 is refused. Without a network this says so and succeeds: the tests that need the file are then
skipped.
"""

from __future__ import annotations

import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

SHA256 = "5386ca299328e0d6ffe7b783b09a462023b02b9a0906cba01d83f482ed5b7484"
COMMIT = "cd831db10c8c9a0f6340f02da5613316a8a92b67"
URL = f"https://raw.githubusercontent.com/test-time-training/ttt-lm-pytorch/{COMMIT}/ttt.py"
TARGET = Path(sys.prefix) / "sources" / "ttt.py"


def main(source: str | None = None) -> str:
    """Fetch, verify, write; returns what happened."""
    if TARGET.exists() and source is None:
        return f"{TARGET} is there already"
    if source is None:
        try:
            with urllib.request.urlopen(URL, timeout=30) as answer:
                data = answer.read()
        except (urllib.error.URLError, TimeoutError) as error:
            return f"ttt-lm-pytorch could not be fetched ({error}); the tests that need it will be skipped"
    else:
        data = Path(source).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        sys.exit(f"this is not the pinned ttt.py: its SHA-256 is {found}")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(data)
    return f"{TARGET} is ttt-lm-pytorch at {COMMIT}"


if __name__ == "__main__":
    print(main(*sys.argv[1:2]))
