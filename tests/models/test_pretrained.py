from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fastweights.core.architecture import Matrix
from fastweights.core.rule import Rule, beyond_defaults
from fastweights.data.tokenizer import load_tokenizer
from fastweights.inference.session import Session
from fastweights.models import durable, pretrained
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import ModelFileError, list_models, load_model, model_info, save_model
from fastweights.tasks.needle import Needle, match_all, question
from fastweights.train.recipes import load_recipe

CONFIG = ModelConfig(vocab_size=24, dim=16, depth=1, heads=2, wiring="lmm", rule=Rule(Matrix(), chunk_size=8))


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(CONFIG)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_as_it_was(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(**{**CONFIG.__dict__, "tied": tied})).to(dtype)
    info = save_model(model, tmp_path / "m", tokenizer="bpe4096", card="# Name\n\nOne line.\nMore.\n")
    loaded = load_model(tmp_path / "m")
    assert loaded.fingerprint() == model.fingerprint()
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert (loaded.head.weight is loaded.embedding.weight) == tied
    assert {p.dtype for p in load_model(tmp_path / "m", dtype=torch.float64).parameters()} == {torch.float64}
    assert info == model_info(tmp_path / "m")
    assert (info.tokenizer, info.config, info.summary, info.name) == ("bpe4096", model.config, "One line.", "m")
    assert info.parameters == sum(p.numel() for p in model.parameters())


def test_loading_draws_no_random_numbers_of_the_callers(model: LanguageModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(tmp_path / "m")
    assert torch.equal(torch.rand(2), expected)


def test_others_may_read_what_they_may_enter(model: LanguageModel, tmp_path: Path) -> None:
    os.umask(0o022)
    save_model(model, tmp_path / "m", tokenizer="")
    assert (tmp_path / "m" / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_every_altered_or_missing_file_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    weights, config = tmp_path / "m" / "weights.safetensors", tmp_path / "m" / "config.json"
    good, text = weights.read_bytes(), config.read_text()
    for bad in (good[:-1], good[:100], b"", good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]):
        weights.write_bytes(bad)
        with pytest.raises(ModelFileError, match=r"is damaged: weights\.safetensors is not the file"):
            load_model(tmp_path / "m")
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"incomplete: weights\.safetensors is missing"):
        load_model(tmp_path / "m")
    for broken, says in (("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "cannot be read")):
        config.write_text(broken)
        with pytest.raises(ModelFileError, match=says):
            load_model(tmp_path / "m")
    config.write_text(json.dumps(json.loads(text) | {"format": 9}))
    with pytest.raises(ModelFileError, match="has format 9; this version reads format 1"):
        load_model(tmp_path / "m")
    config.unlink()
    with pytest.raises(ModelFileError, match=r"is not a model: it holds no config\.json"):
        load_model(tmp_path / "m")


def test_weights_of_another_configuration_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    config = tmp_path / "m" / "config.json"
    facts = json.loads(config.read_text())
    for change, says in (({"depth": 2}, "lack tensor"), ({"vocab_size": 25}, "where the model has")):
        config.write_text(json.dumps(facts | {"model": facts["model"] | change}))
        with pytest.raises(ModelFileError, match=says):
            load_model(tmp_path / "m")


def test_shipped_models_are_found_by_name(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "none")
    assert list_models() == []
    with pytest.raises(ModelFileError, match="no models are shipped"):
        load_model("passkey")
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    save_model(model, tmp_path / "passkey", tokenizer="bytes")
    assert [info.name for info in list_models()] == ["passkey"]
    assert load_model("passkey").fingerprint() == model.fingerprint()
    with pytest.raises(ModelFileError, match="did you mean passkey"):
        load_model("passkeys")
    with pytest.raises(ModelFileError, match="shipped models: passkey; or give a model's folder"):
        load_model("xyz")


def test_nothing_is_overwritten_unasked(model: LanguageModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    with pytest.raises(ModelFileError, match="exists already"):
        save_model(model, tmp_path / "m", tokenizer="")
    with torch.no_grad():
        model.head.weight.mul_(2)
    save_model(model, tmp_path / "m", tokenizer="", overwrite=True)
    assert load_model(tmp_path / "m").fingerprint() == model.fingerprint()
    assert os.listdir(tmp_path) == ["m"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ModelFileError, match="is not a model, so it is not overwritten"):
        save_model(model, tmp_path / "mine", tokenizer="", overwrite=True)


def test_a_full_disk_leaves_the_old_model(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    fingerprint = model.fingerprint()

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "save_file", full)
        with pytest.raises(ModelFileError, match="No space left on device"):
            save_model(LanguageModel(CONFIG), tmp_path / "m", tokenizer="", overwrite=True)
    assert load_model(tmp_path / "m").fingerprint() == fingerprint
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_model(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "m", tokenizer="")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".writing-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(ModelFileError, match="Input/output error"):
            save_model(LanguageModel(CONFIG), tmp_path / "m", tokenizer="", overwrite=True)
    assert load_model(tmp_path / "m").fingerprint() == model.fingerprint()
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_of_a_shipped_models_name_hides_it_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needle").mkdir()
    (tmp_path / "needle" / "config.json").write_text("{}")
    assert model_info("needle").folder == pretrained.SHIPPED / "needle"
    assert [info.name for info in list_models()] == ["needle"]
    with pytest.raises(ModelFileError, match="is damaged"):
        load_model("./needle")


def test_the_shipped_model_is_small_and_answers() -> None:
    info = model_info("needle")
    assert info.parameters <= 5_000_000
    assert sum(path.stat().st_size for path in info.folder.iterdir()) <= 20 * 2**20
    assert info.config == load_recipe("needle").model
    session = Session(load_model("needle"), load_tokenizer("bpe4096"))
    needles = [Needle("quiet-harbor", "4071886"), Needle("green-lamp", "1930527")]
    session.read(" It rained. ".join(["It was late.", *(needle.sentence for needle in needles), "It went on raining."]))
    for needle in needles:
        assert match_all(session.ask(question(needle), stop=(".",)).text, [needle.value]) == 1


def test_fields_that_a_configuration_gains_do_not_change_what_a_model_is_called(model: LanguageModel) -> None:
    known = {"kind", "vocab_size", "dim", "depth", "heads", "wiring", "rule"}
    assert set(beyond_defaults(CONFIG)) <= known
    assert beyond_defaults(CONFIG.rule) == {"kind": "Rule", "architecture": {"kind": "Matrix"}, "chunk_size": 8}
    assert LanguageModel(ModelConfig(**{**CONFIG.__dict__, "window": 65})).fingerprint() != model.fingerprint()


def test_what_was_measured_is_the_shipped_model() -> None:
    """The numbers of README and of the model card come from results/needle.json."""
    measured = json.loads((Path(__file__).parents[2] / "results" / "needle.json").read_text(encoding="utf-8"))
    assert measured["model"] == "needle"
    assert measured["fingerprint"] == load_model("needle").fingerprint()
