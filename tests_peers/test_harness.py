"""A model of ours in the hands of lm-evaluation-harness, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.small_model import build, save
from tests_peers.harness import BPE, METADATA, SHORT, lm_eval, manager
from tests_peers.trial import MEASURED, Measurement

from fastweights.data.tokenizer import Ids
from fastweights.evaluate.harness import NAME, adapter
from fastweights.evaluate.harness_reader import Reader
from fastweights.evaluate.likelihood import pair_of, windows
from fastweights.inference.session import Session
from fastweights.models.language_model import LanguageModel
from fastweights.tasks.needle import match_all

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The cook was not in the kitchen, naïve as he was.\nNobody knew: 1234567 geese had come. " * 9
CLOSE = 1e-7  # of the logarithms of probabilities, which are taken in float32


def small() -> LanguageModel:
    """In float64: random memories amplify what float32 rounds away."""
    return build(tokenizer="bpe4096").double().eval()


@torch.no_grad()
def log_probabilities(context: Sequence[int], asked: Sequence[int]) -> tuple[float, bool]:
    """By one call of the model and softmax."""
    ids = torch.tensor([[*context, *asked]])
    log_p = torch.log_softmax(small()(ids[:, :-1]).logits, -1)[0, len(context) - 1 :]
    chosen = ids[0, len(context) :]
    return log_p.gather(-1, chosen[:, None]).sum().item(), bool((log_p.argmax(-1) == chosen).all())


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    instance = lm_eval("api.instance").Instance
    return [instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def note(function: str, largest: float) -> None:
    compared, how = "log-probabilities", "of the tokens that it reads and asks for, by one call of the same model"
    MEASURED.append(Measurement("lm-eval", function, "evaluate.harness", compared, "float32", largest, note=how))


def test_likelihoods_are_those_of_one_call() -> None:
    greedy = Session(small(), BPE).generate("Once", max_tokens=3, temperature=0)
    assert pair_of(BPE, "Once", greedy.text).asked.tolist() == list(greedy.ids)
    given = [
        (TEXT, " The cook"),
        (TEXT[:70], TEXT[70:400]),
        ("One line \n", "another"),
        ("", TEXT[:90]),
        ("Once", greedy.text),
        ("Once", " upon"),
    ]
    model = adapter()(Reader(small(), BPE, at_once=3))
    found = model.loglikelihood(requests("loglikelihood", given), disable_tqdm=True)
    encode = lm_eval("api.model").TemplateLM._encode_pair
    largest = 0.0
    for (context, continuation), (log_probability, is_greedy) in zip(given, found, strict=True):
        # The harness's own division into tokens.
        us = SimpleNamespace(backend="causal", tok_encode=BPE.encode)
        pair = encode(us, context, continuation) if context else ([BPE.eos], BPE.encode(continuation))
        wanted, likeliest = log_probabilities(*pair)
        largest = max(largest, abs(log_probability - wanted) / abs(wanted))
        assert is_greedy == likeliest
    note("TemplateLM._encode_pair", largest)
    assert largest < CLOSE
    assert [is_greedy for _, is_greedy in found] == [False, False, False, False, True, False]


def test_a_document_is_read_with_one_memory() -> None:
    texts = [TEXT, TEXT[:100], ""]
    model = adapter()(Reader(small(), BPE))
    found = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    wanted = [log_probabilities([BPE.eos], BPE.encode(text))[0] for text in texts[:2]]
    assert found == [*(pytest.approx(value, rel=CLOSE) for value in wanted), 0.0]


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_windows_are_the_harness_s(size: int) -> None:
    tools = lm_eval("utils")

    def divided(ids: Ids) -> list[tuple[list[int], list[int]]]:
        rolling = tools.get_rolling_token_windows(ids.tolist(), BPE.eos, size, 1)
        return [tools.make_disjoint_window(window) for window in rolling]

    for length in (0, 1, 6, 7, 8, 63, 64, 65, 200):
        ids = BPE.encode_array(TEXT)[:length]
        assert [(a.tolist(), b.tolist()) for a, b in windows(BPE, ids, size)] == divided(ids)
    model = adapter()(Reader(small(), BPE, "windows", size))
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT[:300],)]))
    wanted = sum(log_probabilities(*window)[0] for window in divided(BPE.encode_array(TEXT[:300])))
    note(f"get_rolling_token_windows of {size}", abs(found / wanted - 1))
    assert found == pytest.approx(wanted, rel=CLOSE)


def test_answers_are_those_of_a_session() -> None:
    given: list[tuple[str, dict[str, Any]]] = [
        ("\nWho was the cook?", {"until": [], "max_gen_toks": 12}),
        (f"\n{TEXT}", {"until": ["e"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}),
        ("\nWho?", {"until": "\n\n", "max_gen_toks": 12}),
        ("\nWhere?", {"until": [], "max_gen_toks": 12}),
    ]
    found = adapter()(Reader(small(), BPE)).generate_until(requests("generate_until", given))
    for (prompt, wanted), text in zip(given, found, strict=True):
        until = wanted["until"]
        stop = [until] if isinstance(until, str) else until
        assert text == Session(small(), BPE).ask(prompt, max_tokens=12, stop=stop).text
    assert all(found)


def test_a_task_from_end_to_end() -> None:
    model = adapter()(Reader(small(), BPE))
    done = lm_eval("evaluator").simple_evaluate(
        model=model, tasks=["niah_single_1"], task_manager=manager(), limit=2, bootstrap_iters=0
    )
    samples = done["samples"]["niah_single_1"]
    assert len(samples) == 2
    for sample in samples:
        prompt, arguments = sample["arguments"][0]
        assert prompt == f"{sample['doc']['input']} {sample['doc']['gen_prefix']}"
        assert arguments["max_gen_toks"] == 128
        wanted = Session(small(), BPE).generate(prompt, max_tokens=128, temperature=0).text
        assert sample["resps"] == [[wanted]]
        assert sample[str(SHORT)] == match_all(wanted, sample["doc"]["outputs"])
    assert done["results"]["niah_single_1"][f"{SHORT},none"] == sum(one[str(SHORT)] for one in samples) / 2
    assert done["config"]["model_sha"] == small().fingerprint()
    assert done["config"]["rolling"] == "document"


class Knowing(Reader):
    """Answers from the prompt: the number, wherever it stands."""

    def answers(self, given: Any) -> Any:
        for index, (prompt, _) in enumerate(given):
            yield index, prompt.split(" is: ")[1][:7] if index else "no"


def test_right_answers_count() -> None:
    model = adapter()(Knowing(small(), BPE))
    done = lm_eval("evaluator").simple_evaluate(
        model=model, tasks=["niah_single_1"], task_manager=manager(), limit=4, bootstrap_iters=0
    )
    assert done["results"]["niah_single_1"][f"{SHORT},none"] == 0.75


def local_tasks(folder: Path) -> None:
    """Two tasks of three lines, one of documents and one of choices."""
    lines = [{"text": TEXT[:end], "choices": [" geese", " a cook"], "gold": 0} for end in (40, 90, 300)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'lines.jsonl'}}}}}\ntest_split: test\n"
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    choices = "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    metric = "metric_list: [{metric: bits_per_byte}]\n"
    (folder / "rolling.yaml").write_text(f"task: our_documents\n{data}{rolling}{metric}")
    (folder / "choices.yaml").write_text(f"task: our_choices\n{data}{choices}target_delimiter: ''\n")


def test_the_command_line(tmp_path: Path) -> None:
    """As it is documented; without a model's name it says what is missing."""
    local_tasks(tmp_path)
    words = [sys.executable, "-m", "fastweights.evaluate.harness", "run", "--model", NAME]
    tasks = ["--tasks", "our_documents,our_choices", "--include_path", str(tmp_path), "--batch_size", "2"]
    output = ["--output_path", str(tmp_path / "out"), "--log_samples", "--metadata", json.dumps(METADATA)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT / "src")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [*words, "--model_args", *arguments, *tasks, *output]
        return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)

    done = run(f"model={save(tmp_path / 'small', tokenizer='bpe4096')}", "rolling=windows", "window=32")
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())
    assert found["config"]["rolling"] == "windows"
    reader = Reader(build(tokenizer="bpe4096").eval(), BPE, "windows", 32)
    wanted = sum(value for _, value in reader.rolling_log_likelihoods([TEXT[:40], TEXT[:90], TEXT[:300]]))
    size = sum(len(TEXT[:end].encode()) for end in (40, 90, 300))
    bits = found["results"]["our_documents"]["bits_per_byte,none"]
    assert bits == pytest.approx(-wanted / size / torch.tensor(2.0).log().item(), rel=1e-4)
    assert found["results"]["our_choices"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
    refused = run("window=32")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("fastweights: which model")
