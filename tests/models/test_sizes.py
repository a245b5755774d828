from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fastweights.core import presets
from fastweights.errors import UserError
from fastweights.models import sizes
from fastweights.models.config import ModelConfig, Wiring
from fastweights.models.language_model import LanguageModel
from fastweights.models.sizes import SIZES, sized

WIRINGS: tuple[Wiring, ...] = ("lmm", "mac", "mag", "mal")

COUNTS = {
    "0.1m": (106_296, 139_608, 129_912, 125_208),
    "0.4m": (293_600, 411_104, 377_056, 360_416),
    "1m": (1_212_336, 1_409_040, 1_352_304, 1_324_368),
    "2m": (2_067_808, 2_532_192, 2_398_560, 2_332_512),
    "4m": (3_814_368, 4_858_080, 4_559_328, 4_411_104),
    "10m": (8_079_120, 10_866_960, 10_072_848, 9_678_096),
    "30m": (23_354_528, 31_731_872, 29_357_216, 28_174_496),
    "90m": (77_387_584, 99_843_904, 93_521_728, 90_369_856),
    "170m": (145_719_744, 196_509_120, 182_307_264, 175_220_160),
    "340m": (408_376_064, 587_854_592, 537_400_064, 512_209_664),
    "760m": (866_777_088, 1_268_115_456, 1_154_684_928, 1_098_024_960),
    "1.3b": (1_191_509_344, 1_724_968_288, 1_573_789_024, 1_498_254_688),
}
"""Parameters of lmm, mac, mag, mal."""


def on_paper(config: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(config)


def test_every_size_is_counted() -> None:
    assert list(COUNTS) == list(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_the_parameters_that_are_stated(name: str) -> None:
    built = [on_paper(sized(name, wiring=wiring)) for wiring in WIRINGS]
    assert all(p.is_meta for model in built for p in model.parameters())
    assert tuple(sum(p.numel() for p in model.parameters()) for model in built) == COUNTS[name]
    (row,) = re.findall(rf"^{re.escape(name)} .*$", sizes.__doc__ or "", re.MULTILINE)
    dim, depth, heads, vocabulary, *counts = (int(number.replace(",", "")) for number in row.split()[1:])
    assert (dim, depth, heads, vocabulary) == SIZES[name][:4]
    assert tuple(counts) == COUNTS[name]


HOPE = {"760m": (796_881_480, 778_815_048), "1.3b": (1_084_603_222, 1_037_043_766)}
"""Parameters of Hope and of Hope-Attention with three levels, together as wide as one network."""


@pytest.mark.parametrize("name", HOPE)
def test_hope_can_be_built_in_the_sizes_of_its_paper(name: str) -> None:
    plain = sized(name, wiring="self_modifying", rule=presets.hope())
    attention = sized(name, wiring="attention", rule=ModelConfig.rule)
    shape = {"levels": "512,2048,8192", "expansion": ModelConfig.expansion / 3}
    built = [on_paper(replace(config, **shape)) for config in (plain, attention)]  # type: ignore[arg-type]
    assert all(p.is_meta for model in built for p in model.parameters())
    assert tuple(sum(p.numel() for p in model.parameters()) for model in built) == HOPE[name]


def test_the_parameters_of_a_memory_model_by_a_formula() -> None:
    dim, depth, heads, vocab = 768, 12, 16, 32_000
    inner = dim // heads
    memory = 5 * dim * dim + 4 * 3 * dim + dim * 6 * heads + 6 * heads + heads * 2 * 4 * inner**2 + inner
    assert COUNTS["170m"][0] == depth * (memory + 3 * dim * 2048 + 2 * dim) + 2 * vocab * dim + dim


def test_a_small_size_reads() -> None:
    model = LanguageModel(sized("0.1m", wiring="mac"))
    assert model(torch.randint(0, 264, (1, 70))).logits.shape == (1, 70, 264)


def test_the_rule_and_the_vocabulary_may_be_chosen() -> None:
    config = sized("1m", wiring="mal", rule=presets.deltanet(), vocab_size=300)
    assert (config.wiring, config.rule, config.vocab_size, config.dim) == ("mal", presets.deltanet(), 300, 96)
    assert sized("1m").rule.clip == 1.0


def test_an_unknown_size_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"did you mean '1.3b'"):
        sized("1.3B")
    with pytest.raises(UserError, match=r"there are 0\.1m, "):
        sized("huge")
