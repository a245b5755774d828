"""Tables: ties are bold, and what did not learn is out of the comparison."""

from __future__ import annotations

from fastweights.evaluate.compare import Bits, Shares, best, comparison, tie


def test_a_measure_shows_its_spread_only_if_it_has_one() -> None:
    assert str(Shares((0.5,), 10)) == "50.0"
    assert str(Shares((0.9, 0.5, 0.6), 10, mark=" †")) == "50.0 / 60.0 / 90.0 †"
    assert str(Shares((0.02,), 10, learned=False)) == "did not learn (2.0)"


def test_differences_within_the_spread_of_either_are_ties() -> None:
    steady, shaky = Shares((0.80, 0.80, 0.81), 10**6), Shares((0.70, 0.72, 0.85), 10**6)
    assert tie(steady, shaky)
    assert tie(shaky, steady)
    assert not tie(steady, Shares((0.70, 0.72, 0.74), 10**6))


def test_with_one_seed_the_number_of_answers_decides() -> None:
    """Of 400 answers a share of one half has a standard error of 2.5 %, the difference of two one of 3.5 %."""
    half = Shares((0.5,), 400)
    assert tie(half, Shares((0.565,), 400))
    assert not tie(half, Shares((0.58,), 400))
    assert not tie(half, Shares((0.565,), 40_000))


def test_the_best_are_sought_among_those_that_learned() -> None:
    column = {
        "good": Shares((0.91,), 10**4),
        "as good": Shares((0.905,), 10**4),
        "worse": Shares((0.85,), 10**4),
        "lucky": Shares((0.99,), 10**4, learned=False),
    }
    assert best(column) == {"good", "as good"}
    assert best({"lucky": column["lucky"]}) == set()


def test_a_table_in_markdown() -> None:
    columns = {
        "easy": {"a": Shares((1.0,), 100), "b": Shares((0.5,), 100)},
        "hard": {"a": Shares((0.01,), 100, learned=False)},
    }
    assert comparison(["a", "b"], columns, {"size": {"a": "1", "b": "22"}}) == (
        "|  | size | easy | hard |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| `a` | 1 | **100.0** | did not learn (1.0) |\n"
        "| `b` | 22 | 50.0 |  |\n"
    )


def test_of_bits_the_fewest_are_the_best() -> None:
    column = {"good": Bits((1.91, 1.92), 0.01), "as good": Bits((1.92,), 0.01), "worse": Bits((2.1,), 0.01)}
    assert best(column) == {"good", "as good"}
    assert str(column["good"]) == "1.910 / 1.915 / 1.920"
    assert str(Bits((2.1,), 0.01, mark=" †")) == "2.100 †"
