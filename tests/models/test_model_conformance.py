from __future__ import annotations

from dataclasses import replace

import pytest
from tests.layers.wirings import WIRINGS, config

from fastweights.models.conformance import check_model, wirings
from fastweights.models.language_model import LanguageModel

PAIRS = list(zip(WIRINGS, ["titans", "titans_linear", "titans_swiglu", "titans_linear", "titans"], strict=True))


@pytest.mark.parametrize(("wiring", "rule"), PAIRS)
def test_a_whole_model_has_every_property(wiring: str, rule: str) -> None:
    model = LanguageModel(replace(config(wiring, rule), tied=wiring == "mag"))
    report = check_model(model, lengths=[1, 7, 20], without=[10], title=f"{wiring}, {rule}")
    assert report.ok, report.table()


def test_a_model_can_be_compiled_and_recomputed() -> None:
    report = check_model(LanguageModel(config("mal", "titans")), lengths=[7], without=range(3, 10))
    assert report.ok, report.table()


def test_the_suite_names_all_wirings_and_a_model() -> None:
    suite = wirings(quick=True)
    blocks = {"lmm", "mac", "mac_pooled", "mag", "mal", "self_modifying"}
    assert set(suite) == blocks | {"model", "hope", "hope_attention"}
    report = suite["mag"]()
    assert report.ok, report.table()
    assert {f.length for f in report.findings} == {7, 33}
