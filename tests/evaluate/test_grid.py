"""A comparison: the same budget for all, cells that survive, and pages that say what was found."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.small_grid import bits, grid, recall
from tests.small_model import build

from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate import contest as contests
from fastweights.evaluate.contest import Cell, Comparison, with_effort
from fastweights.evaluate.grid import GridStep, file_of, finished, load_comparison, outcome, run_grid
from fastweights.evaluate.perplexity import Document, evaluate_documents
from fastweights.evaluate.report import depth_table, make_report
from fastweights.evaluate.surprise import surprise_report
from fastweights.train.config import Probe
from fastweights.train.optim import TrainingStopped
from fastweights.train.recipes import RecipeError
from fastweights.train.state_tracking import LanguageTask

CELLS = ("compare_quick", "compare_small", "formal_languages", "hope_ablation")
"""Folders of results that hold cells."""


def run(comparison: Comparison, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    return run_grid(comparison, tmp_path / "out", tmp_path / "runs", "fastweights compare x", **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A whole comparison, done once."""
    folder = tmp_path_factory.mktemp("grid")
    return folder, run(grid(seeds=2), folder)


def test_every_cell_is_trained_and_asked_alike(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, cells = found
    assert [(cell["contest"], cell["model"], cell["seed"]) for cell in cells] == list(grid(seeds=2).cells())
    for cell in cells:
        assert cell["parameters"] == pytest.approx(40_000, rel=0.02)
        assert (cell["steps"], cell["capped"], cell["stopped"]) == (3, False, "")
        assert cell["training"]["stages"] == cells[0]["training"]["stages"] or cell["contest"] == "parity"
        assert cell["state_bytes"] > 0
        assert {"command", "date", "machine", "versions", "wall_seconds"} <= cell.keys()
        assert cell == json.loads(
            file_of(Cell(cell["contest"], cell["model"], cell["seed"]), folder / "out").read_bytes()
        )
    by_name = {(cell["contest"], cell["model"], cell["seed"]): cell for cell in cells}
    lmm = by_name["recall", "lmm", 0]
    assert [score["tokens"] for score in lmm["scores"]] == [32, 64]
    assert [score["asked"] for score in lmm["scores"]] == [32, 8]
    assert set(lmm["controls"]) == {"off", "frozen", "reset", "query is key", "ascent"}
    assert all(len(scores) == 2 for scores in lmm["controls"].values())
    assert by_name["recall", "lstm", 0]["controls"] == {}
    assert "reset" not in by_name["parity", "lmm", 0]["controls"]
    assert lmm["is learned"]
    assert not by_name["parity", "lmm", 0]["is learned"]


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(
    found: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cells = found
    monkeypatch.setattr("fastweights.evaluate.grid.run_cell", None)
    assert run(grid(seeds=2), folder) == cells
    assert len(run(replace(grid(), contests={"recall": recall()}), folder)) == 2
    with pytest.raises(UserError, match=r"lmm-0.json' was found with other settings \(training differs\)"):
        run(replace(grid(), contests={"recall": recall(4)}), folder)


def test_a_training_that_was_cut_off_goes_on_when_it_may_take_longer(tmp_path: Path) -> None:
    def allowed(minutes: float, threads: int = 2) -> Comparison:
        contest = replace(recall(), minutes=minutes)
        return replace(grid(names=("lstm",)), contests={"recall": contest}, threads=threads)

    (cut,) = run(allowed(1e-9), tmp_path)
    assert (cut["steps"], cut["capped"]) == (1, True)
    with pytest.raises(UserError, match="minutes differs"):
        run(allowed(1e-10), tmp_path)
    steps: list[GridStep] = []
    (whole,) = run(allowed(5.0), tmp_path, on_step=steps.append)
    assert (whole["steps"], whole["capped"], whole["minutes"]) == (3, False, 5.0)
    assert [step.record.step for step in steps] == [2, 3]
    assert whole["scores"] == run(allowed(4.0, threads=1), tmp_path)[0]["scores"]
    assert json.loads(file_of(Cell("recall", "lstm", 0), tmp_path / "out").read_bytes())["minutes"] == 5.0


@pytest.mark.parametrize("at", [1, 3])
def test_a_comparison_that_was_interrupted_goes_on(
    at: int, found: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """In the middle of a training, and behind its last step, before the model was asked."""
    only = replace(grid(names=("lmm",)), contests={"recall": recall()})

    def stop(step: GridStep) -> None:
        if step.record.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(only, tmp_path, on_step=stop)
    assert not (tmp_path / "out").exists()
    (cell,) = run(only, tmp_path)
    assert cell["scores"] == found[1][0]["scores"]


def test_a_finished_training_is_asked_without_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = replace(grid(names=("lstm",)), contests={"recall": recall()})

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(contests, "ask_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(only, tmp_path)
    steps: list[GridStep] = []
    (cell,) = run(only, tmp_path, on_step=steps.append)
    assert steps == []
    assert cell["steps"] == 3
    assert cell["seconds"] > 0


def test_a_model_that_is_cut_off_or_gives_up_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = replace(grid(names=("lstm",)), contests={"recall": replace(recall(50), minutes=1e-9)})
    (cell,) = run(cut, tmp_path)
    assert (cell["steps"], cell["capped"]) == (1, True)
    assert "cut off" in outcome(cell)
    shorter = replace(grid(names=("lstm", "lmm")), contests={"recall": recall(50)}, minutes={("recall", "lmm"): 1e-9})
    assert [facts["minutes"] for facts in map(shorter.facts, shorter.cells())] == [recall().minutes, 1e-9]
    assert [found["capped"] for found in run(shorter, tmp_path / "by model")] == [False, True]

    def gives_up(*arguments: Any, **options: Any) -> Any:
        raise TrainingStopped("20 steps in a row had to be skipped")

    monkeypatch.setattr(contests, "train", gives_up)
    (stopped,) = run(replace(cut, contests={"parity": bits()}), tmp_path)
    assert outcome(stopped) == "gave up, 20 steps in a row had to be skipped"
    page = make_report(tmp_path / "out", tmp_path / "report").page.read_text(encoding="utf-8")
    assert " †" in page
    assert "`lstm`, seed 0: training gave up, 20 steps" in page


def test_training_ends_when_everything_is_right_and_not_before(tmp_path: Path) -> None:
    easy = replace(
        bits(200), task=LanguageTask(language="aa"), questions=(Probe(name="4", length=4, batch_size=16),), learned=0.9
    )
    easy = replace(easy, measure="right", enough=1.0, look_every=20)
    (cell,) = run(replace(grid(names=("lstm",)), contests={"easy": easy}), tmp_path)
    assert 20 < cell["steps"] < 200
    assert cell["steps"] % 20 == 0
    assert (cell["capped"], cell["scores"][0]["value"]) == (False, 1.0)
    assert cell["enough"] == 1.0
    looked = cell["training"]["evaluation"]
    assert (looked["every"], [probe["name"] for probe in looked["probes"]]) == (20, ["4"])
    never = replace(easy, stages=(replace(easy.stages[0], steps=45),), enough=1.1)
    (cell,) = run(replace(grid(names=("lstm",)), contests={"never": never}), tmp_path)
    assert (cell["steps"], cell["capped"]) == (45, False)
    with pytest.raises(UserError, match="no share of right answers"):
        replace(easy, measure="bits")


def test_the_report_has_tables_controls_and_pictures(found: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    made = make_report(found[0] / "out", tmp_path)
    assert (made.used, made.others) == (8, ())
    page = made.page.read_text(encoding="utf-8")
    assert "| short, 32 | 64 tokens |" in page
    parity_part, recall_part = page.split("### recall")
    assert "What is left of it under a control" in recall_part
    assert "did not learn (" in parity_part
    assert "What is left" not in parity_part
    assert (tmp_path / "out-recall.png").is_file()
    assert "(out-recall.png)" in page


def test_a_report_of_tasks_and_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        make_report(tmp_path / "none", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{")
    with pytest.raises(UserError, match="holds no results"):
        make_report(tmp_path / "results", tmp_path)
    samples = [
        {"tokens": tokens, "depths": [depth], "scores": {"match": right}}
        for tokens, depth, right in ((1024, 0.0, 1.0), (1024, 55.0, 0.0), (2048, 100.0, 1.0), (2048, 97.5, 0.0))
    ]
    lengths = [
        {"tokens": tokens, "samples": 2, "scores": {"match": {"mean": 50.0, "interval": [9.5, 90.5]}}}
        for tokens in (1024, 2048)
    ]
    content = {"task": "niah", "model": "runs/mine", "lengths": lengths, "results": samples}
    (tmp_path / "results" / "niah.json").write_text(json.dumps(content))
    made = make_report(tmp_path / "results", tmp_path / "report")
    assert made.others == (tmp_path / "results" / "x.json",)
    page = made.page.read_text(encoding="utf-8")
    assert "| `mine` | 50.0 (9.5 to 90.5, n 2) | 50.0 (9.5 to 90.5, n 2) |" in page
    assert (tmp_path / "report" / "niah-depth-mine.png").is_file()
    (tmp_path / "results" / "again").mkdir()
    (tmp_path / "results" / "again" / "niah.json").write_text(json.dumps(content))
    page = make_report(tmp_path / "results", tmp_path / "report").page.read_text(encoding="utf-8")
    assert "| `mine (niah)` |" in page
    assert "| `mine (again-niah)` |" in page
    columns, rows, shares = depth_table(samples)
    assert (columns, rows[0], rows[-1]) == (["1,024", "2,048"], "0 to 10", "90 to 100")
    assert (shares[0], shares[5], shares[9]) == ([1.0, None], [0.0, None], [None, 0.5])


def test_a_report_of_what_was_read(tmp_path: Path) -> None:
    texts = [Document(name, partial(list, [f"{name} is a text. " * 60])) for name in "ab"]
    (tmp_path / "results").mkdir()
    model, tokenizer = build(), ByteTokenizer()
    found = evaluate_documents(model, tokenizer, "mine", texts, tmp_path / "results" / "texts.json")
    felt = surprise_report(model, tokenizer, texts[0].open(), texts[1].open(), tokens=64, topic=16, window=4, passage=8)
    content = {"kind": "surprise", "model": "mine"} | felt.to_dict()
    (tmp_path / "results" / "felt.json").write_text(json.dumps(content))
    made = make_report(tmp_path / "results", tmp_path / "report")
    assert made.used == 2
    page = made.page.read_text(encoding="utf-8")
    assert f"| `texts` | mine | carried | 2 | {found['bits_per_byte']:.3f} (" in page
    assert "| `felt, layer 0` |" in page
    pictures = {"perplexity.png", "surprise.png", "surprise-along-felt.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", *pictures}

    (tmp_path / "results" / "before").mkdir()
    old = {name: value for name, value in content.items() if name != "along"}
    (tmp_path / "results" / "before" / "felt.json").write_text(json.dumps(old))
    page = make_report(tmp_path / "results", tmp_path / "again").page.read_text(encoding="utf-8")
    assert "| `before-felt, layer 0` |" in page
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"report.md", *pictures}


def test_recipes_of_comparisons(tmp_path: Path) -> None:
    quick, small = load_comparison("compare_quick"), load_comparison("compare_small")
    assert (len(list(quick.cells())), len(list(small.cells()))) == (8, 88)
    for cell in small.cells():
        config = small.training(cell)
        assert config.tokens == small.training(cell._replace(model="lstm")).tokens
        assert small.facts(cell)["questions"]
    with pytest.raises(RecipeError, match="did you mean compare_quick"):
        load_comparison("compare_quik")
    (tmp_path / "x.py").write_text("def comparison():\n    return 3\n")
    with pytest.raises(RecipeError, match="gave a int, not a Comparison"):
        load_comparison(tmp_path / "x.py")
    nothing = "Comparison(models={}, contests={}, minutes={('needel', 'mac'): 3.0})"
    imported = "from fastweights.evaluate.contest import Comparison\n"
    (tmp_path / "y.py").write_text(f"{imported}def comparison():\n    return {nothing}\n")
    with pytest.raises(UserError, match="names \\('needel', 'mac'\\), which is no contest and model of it"):
        load_comparison(tmp_path / "y.py")


def test_the_ablation_takes_one_thing_away_at_a_time() -> None:
    ablation = load_comparison("hope_ablation")
    for contest, chunk in (("books", 16), ("parity", 1)):
        models = {name: ablation.training(Cell(contest, name, 0)).model for name in ablation.models}
        whole = models.pop("whole")
        assert (whole.rule.chunk_size, whole.generator_chunk, whole.level_chunks) == (chunk, chunk, (32, 128))
        assert whole.rule.has_momentum
        assert whole.rule.algorithm.erases
        assert "query" in whole.adaptive
        differ = {
            name: {f.name for f in fields(m) if getattr(m, f.name) != getattr(whole, f.name)}
            for name, m in models.items()
        }
        assert differ.pop("printed") - {"expansion"} == {"rule", "adaptive"}
        taken = {"rule": ("no_delta", "no_momentum", "no_decay"), "levels": ("no_levels",)}
        taken["adaptive"] = ("static_keys", "static_values", "static_queries")
        for field, names in taken.items():
            assert all(differ.pop(name) - {"expansion"} == {field} for name in names)
        assert not differ
        assert not models["no_delta"].rule.algorithm.erases
        assert not models["no_momentum"].rule.has_momentum
        assert models["no_decay"].rule.retention.scope is None


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_in_the_repository_can_be_gone_on_with(name: str) -> None:
    """A setting that came later has its default in them."""
    folder = Path(__file__).parents[2] / "results" / name
    assert len(list(finished(load_comparison(name), folder))) == len(list(folder.rglob("*.json"))) > 0


@pytest.mark.parametrize("name", CELLS)
def test_the_reports_in_the_repository_are_those_of_their_results(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "results" / name
    made = make_report(folder, tmp_path)
    assert made.used == len(list(folder.rglob("*.json")))
    assert made.page.read_text(encoding="utf-8") == (folder / "report.md").read_text(encoding="utf-8")


def test_effort_scales_the_steps_alone() -> None:
    (one,) = with_effort(replace(grid(), contests={"recall": recall(10)}), 0.25).contests.values()
    assert [stage.steps for stage in one.stages] == [2]
    assert replace(one, stages=recall(10).stages) == recall(10)
