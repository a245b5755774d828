"""Recall of needles against the length of the document: the table of the README.

    python benchmarks/needle_curve.py [--model needle] [--lengths 2048 ... 2097152] [--needles 1 8] [--documents 16]

Every point (length, number of needles, seed) runs in a process of its own, so that its peak size is its own, and is
written to results/needle.json as soon as it is done; what stands there for the same model is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastweights import __version__
from fastweights.errors import UserError
from fastweights.evaluate.needle import needle_curve
from fastweights.inference.opening import open_model
from fastweights.models.durable import write_file

LENGTHS = (2048, 8192, 32_768, 131_072, 262_144, 524_288, 1_048_576, 2_097_152)
POINT = ("tokens", "needles", "documents", "seed", "split", "threads")


def measure(model: str, split: Any, tokens: int, needles: int, documents: int, seed: int) -> dict[str, Any]:
    """One point, in this process."""
    opened = open_model(model)
    began = time.monotonic()

    def progress(step: Any) -> None:
        nonlocal began
        if time.monotonic() - began > 30:
            began = time.monotonic()
            print(f"  {step.tokens:,} tokens, {step.tokens_per_second:,.0f} tokens/s", file=sys.stderr)

    points = needle_curve(
        opened.model, opened.tokenizer, [tokens], needles, documents, [seed], split=split, on_progress=progress
    )
    _, result = next(points)
    found = result.to_dict()
    answers = found.pop("answers")
    return found | {
        "asked": len(answers),
        "seed": seed,
        "split": split,
        "threads": torch.get_num_threads(),
        "seconds": round(result.seconds, 2),
        "missed": [answer for answer in answers if not answer["right"]],
    }


def measured_apart(arguments: argparse.Namespace, tokens: int, needles: int, documents: int, seed: int) -> Any:
    """One point, in a process of its own."""
    command = [sys.executable, __file__, "--model", arguments.model, "--split", arguments.split, "--point"]
    point = [str(number) for number in (tokens, needles, documents, seed)]
    done = subprocess.run([*command, *point], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def wanted(arguments: argparse.Namespace) -> Iterator[tuple[int, int, int, int]]:
    """Every point, the short ones first."""
    for tokens in sorted(arguments.lengths):
        documents = min(arguments.documents, max(1, arguments.budget // tokens))
        for needles in arguments.needles:
            for seed in arguments.seeds:
                yield tokens, needles, documents, seed


def start_or_resume(path: Path, model: str) -> dict[str, Any]:
    """The content of the file, or its beginning where there is none or it speaks of another model."""
    opened = open_model(model)
    content: dict[str, Any] = {
        "model": model,
        "fingerprint": opened.model.fingerprint(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"fastweights": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "points": [],
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["fingerprint"] == content["fingerprint"]:
            return before | {key: content[key] for key in ("date", "machine", "versions")}
        print(f"{path} speaks of another model and is started anew", file=sys.stderr)
    return content


def show(points: list[dict[str, Any]]) -> None:
    """The curve as a table in Markdown: seeds are summed up."""
    print("| tokens | needles | documents | right | tokens/s | state, bytes | peak RSS, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tokens, needles in sorted({(point["tokens"], point["needles"]) for point in points}):
        same = [point for point in points if (point["tokens"], point["needles"]) == (tokens, needles)]
        right, asked = sum(point["right"] for point in same), sum(point["asked"] for point in same)
        speed = sum(point["tokens_per_second"] for point in same) / len(same)
        peak = max(point["peak_rss_bytes"] for point in same) / 2**20
        documents = sum(point["documents"] for point in same)
        # Of all documents together; one document's share is what a reader of one would hold.
        state = same[0]["state_bytes_end"] // same[0]["documents"]
        print(
            f"| {tokens:,} | {needles} | {documents} | {right}/{asked} ({right / asked:.1%}) "
            f"| {speed:,.0f} | {state:,} | {peak:,.0f} |"
        )


def main() -> None:
    """Measure what is missing, write each point as it comes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="needle")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--needles", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--documents", type=int, default=16, help="at most, for each length and seed")
    parser.add_argument("--budget", type=int, default=2**62, help="tokens for each point; fewer documents where needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--split", choices=("all", "train", "eval"), default="eval", help="words of the keys")
    parser.add_argument("--out", type=Path, default=Path("results/needle.json"))
    parser.add_argument("--point", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.model, arguments.split, *arguments.point)))
        return
    content = start_or_resume(arguments.out, arguments.model)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    keys = {tuple(point[key] for key in POINT) for point in content["points"]}
    for tokens, needles, documents, seed in wanted(arguments):
        if (tokens, needles, documents, seed, arguments.split, torch.get_num_threads()) in keys:
            continue
        print(f"{documents} x {tokens:,} tokens, {needles} needles, seed {seed}", file=sys.stderr)
        point = measured_apart(arguments, tokens, needles, documents, seed)
        content["points"].append(point)
        content["points"].sort(key=lambda point: [point[key] for key in ("tokens", "needles", "seed", "documents")])
        write_file(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
    show(content["points"])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error}")
