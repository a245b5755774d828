"""Train the byte-level BPE tokenizer on a folder of text files: `python recipes/train_tokenizer.py FOLDER OUT.json`.

The shipped `bpe4096` is this command's output on the 89 novels of the ELTeC-eng training split (public domain).
Deterministic: the same files give the same bytes. About 10 seconds and 1 GB for 55 MB of text.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fastweights.data.tokenizer import SPECIALS, UNIT_PATTERN, BPETokenizer, byte_symbols
from fastweights.errors import UserError


def train(texts: Iterable[str], vocab_size: int = 4096) -> str:
    """Train on `texts` and return the definition that `BPETokenizer` reads.

    Args:
        texts: Training text, in pieces that end where words end.
        vocab_size: Entries in all: 8 special ones, 256 bytes, and the rest merges.

    Raises:
        UserError: Too little text for that many entries.
    """
    tokenizer = Tokenizer(models.BPE())
    units = pre_tokenizers.Split(Regex(UNIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [units, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=byte_symbols(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    # As "added tokens" the special names would be found inside text; as plain entries no text can produce them.
    definition["added_tokens"] = []
    found = len(definition["model"]["vocab"])
    if found != vocab_size:
        raise UserError(f"the text gives {found} entries, not {vocab_size}: use more text or a smaller vocabulary.")
    return json.dumps(definition, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n"


def main() -> None:
    """Read the command line, train, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of .txt files (UTF-8)")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--vocab-size", type=int, default=4096)
    options = parser.parse_args()
    files = sorted(options.folder.glob("**/*.txt"))
    if not files:
        raise SystemExit(f"no .txt files in {options.folder}")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    definition = train((path.read_text("utf-8") for path in files), options.vocab_size)
    tokenizer = BPETokenizer(definition)
    options.out.write_text(definition, "utf-8")
    sample = files[0].read_text("utf-8")
    ratio = len(sample.encode()) / len(tokenizer.encode(sample))
    print(f"{options.out}: {tokenizer.vocab_size} entries, {ratio:.2f} bytes a token")


if __name__ == "__main__":
    main()
