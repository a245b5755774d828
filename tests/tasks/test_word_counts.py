"""Common and frequent words: prompts to the byte, and references that a recount of the context finds."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.data.words import adjectives, nouns
from fastweights.errors import UserError
from fastweights.tasks.ruler import make_sample
from fastweights.tasks.word_counts import CommonWords, FrequentWords, _zeta

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")

_LIST = re.compile(r"Memorize the ones that appear most often\.\n(.*)\nQuestion: What are the 10 most common words")
_CODED = re.compile(r"Find the three most frequently appeared coded words\. (.*)\nQuestion: Do not provide")


def listed(text: str) -> list[str]:
    """The words of a numbered list, whose numbers must be 1, 2, ..."""
    numbers, words = zip(*(item.split(". ") for item in re.split(r" (?=\d+\.)", text)), strict=True)
    assert list(numbers) == [str(number) for number in range(1, len(words) + 1)]
    return list(words)


def test_the_prompt_with_a_list_is_rulers_to_the_byte() -> None:
    assert make_sample("cwe", BPE, 1020).prompt() == (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
        "ones that appear most often.\n"
        "1. inch 2. trumpet 3. lens 4. break 5. foodstuffs 6. hire 7. architect 8. break 9. mouth 10. hire "
        "11. hire 12. campanile 13. sensor 14. salty 15. clothes 16. salty 17. clothes 18. lens 19. "
        "campanile 20. inch 21. salty 22. lens 23. century 24. chapel 25. bandanna 26. moaning 27. inch 28. "
        "moaning 29. threatening 30. flat 31. network 32. moaning 33. paramedic 34. flat 35. network 36. "
        "network 37. campanile 38. clothes 39. break 40. flat\n"
        "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear "
        "most often in the list are: 1. campanile 2. moaning 3. clothes 4. inch 5. network 6. lens 7. salty "
        "8. break 9. flat 10. hire\n"
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
        "ones that appear most often.\n"
        "1. cascade 2. shine 3. gesture 4. lawsuit 5. lover 6. southeast 7. harmonious 8. engineer 9. lover "
        "10. sweatshirt 11. bank 12. harmonious 13. dam 14. sweatshirt 15. juicy 16. bank 17. dam 18. "
        "gesture 19. yoyo 20. gesture 21. broadcast 22. southeast 23. broadcast 24. nut 25. justification "
        "26. lover 27. gesture 28. miss 29. shine 30. broadcast 31. sweatshirt 32. lawsuit 33. broadcast 34. "
        "dam 35. lover 36. sweatshirt 37. bank 38. southeast 39. lawsuit 40. hub 41. shine 42. sweatshirt "
        "43. gesture 44. lawsuit 45. shine 46. harmonious 47. shine 48. bank 49. lover 50. lover 51. dam 52. "
        "blog 53. bank 54. bank 55. dam 56. dam 57. lawsuit 58. broadcast 59. tide 60. southeast 61. "
        "harmonious 62. lawsuit 63. southeast 64. southeast 65. shine 66. broadcast 67. sweatshirt 68. "
        "harmonious 69. harmonious 70. gesture\n"
        "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear "
        "most often in the list are:"
    )


def test_the_prompt_in_code_is_rulers_to_the_byte() -> None:
    assert make_sample("fwe", BPE, 215).prompt() == (
        "Read the following coded text and track the frequency of each coded word. Find the three most "
        "frequently appeared coded words. ... ... ... ... golnhe golnhe ... ... ... ... vogszz ... ... ... "
        "... ... ... ... ... ... golnhe wyljdo golnhe\n"
        "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
        "frequently appeared words in the above coded text? Answer: According to the coded text above, the "
        "three most frequently appeared words are:"
    )


@pytest.mark.parametrize(("tokens", "times", "shown"), [(2000, (6, 1), (3, 1, 20)), (4096, (30, 3), (10, 3, 40))])
def test_a_recount_finds_the_common_words(tokens: int, times: tuple[int, int], shown: tuple[int, int, int]) -> None:
    for index in range(4):
        sample = make_sample("cwe", BPE, tokens, index)
        example, text = _LIST.findall(sample.prompt())
        counts = Counter(listed(text))
        assert {word for word, _ in counts.most_common(10)} == set(sample.references)
        assert sorted(set(counts.values()), reverse=True) == list(times)
        assert set(counts) <= {*nouns(), *adjectives()}
        example_counts = Counter(listed(example))
        common, other, words = shown
        assert sorted(example_counts.values()) == [other] * (words - 10) + [common] * 10
        answer = re.search(r"appear most often in the list are: (1\. .*)\nBelow is", sample.prompt())
        assert answer
        assert set(listed(answer[1])) == {word for word, _ in example_counts.most_common(10)}


def test_words_that_are_too_long_are_drawn_again() -> None:
    # A long list of the first eleven words drawn is too long for 4,096 of these tokens in one of twelve samples.
    assert all(len(make_sample("cwe", BPE, 4096, index).references) == 10 for index in range(60))


def test_long_lists_are_made_of_pairs() -> None:
    sample = make_sample("cwe", BPE, 240_000)
    counts = Counter(listed(_LIST.findall(sample.prompt())[1]))
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", word) for word in counts)
    assert {word for word, _ in counts.most_common(10)} == set(sample.references)
    assert 240_000 - 60 <= sample.length(BPE) <= 240_000


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
def test_a_recount_finds_the_frequent_words(tokenizer: Tokenizer) -> None:
    for tokens in (*range(530, 800, 10), 1024, 4096, 20_000):
        for index in range(2):
            sample = make_sample("fwe", tokenizer, tokens, index)
            words = _CODED.findall(sample.prompt())[0].split(" ")
            (dots, _), *ranked = Counter(words).most_common()
            assert dots == "..."
            assert {word for word, _ in ranked[:3]} == set(sample.references)
            assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked)
            assert ranked[3:] == [] or ranked[2][1] > ranked[3][1]


def test_frequent_words_follow_the_zeta_distribution() -> None:
    sample = make_sample("fwe", BPE, 32_768)
    counts = [count for _, count in Counter(_CODED.findall(sample.prompt())[0].split(" ")).most_common()]
    for rank in range(2, 11):
        assert counts[0] / counts[rank - 1] == pytest.approx(rank**2, rel=0.03)
    # RULER's vocabulary is a fiftieth of the length; the rarest words' share of the text is under one word.
    assert len(counts) <= (32_768 - 50) // 50


def test_zeta() -> None:
    assert _zeta(2) == pytest.approx(1.6449340668482264, rel=1e-13)
    assert _zeta(4) == pytest.approx(1.0823232337111382, rel=1e-13)
    assert _zeta(1.5) == pytest.approx(2.612375348685488, rel=1e-12)


@pytest.mark.parametrize("times", [(3, 3), (2, 3), (5, 0)])
def test_common_words_must_be_more_common(times: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="more often than others"):
        CommonWords(*times)


@pytest.mark.parametrize("alpha", [1.0, 0.5, float("nan"), float("inf"), 11])
def test_what_is_no_distribution_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha must be above 1"):
        FrequentWords(alpha)


@pytest.mark.parametrize("alpha", [1.05, 1.5, 3.0])
def test_other_exponents_fit_as_well(alpha: float) -> None:
    sample = make_sample(FrequentWords(alpha), BPE, 4096)
    words = _CODED.findall(sample.prompt())[0].split(" ")
    assert {word for word, _ in Counter(words).most_common(4)} == {"...", *sample.references}
    assert sample.length(BPE) <= 4096
