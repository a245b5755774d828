"""New languages in context, as something to train on: learning to learn a language, and to keep the one before it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fastweights.tasks.languages import LanguagesSpec, make_languages
from fastweights.train.task import Batch, Task


@dataclass(frozen=True, kw_only=True)
class TranslationTask(Task):
    """Rows of `fastweights.tasks.languages`: lessons in new languages, then translations into them.

    Only the words of the answers have a weight. How much a model keeps of the first language is the difference between
    a probe with ``lessons=1, about=1`` and one with ``lessons=spec.languages, about=1``; `exact` counts sentences.

    Attributes:
        spec: the languages and their lessons; a stage's length must be at least its ``row_tokens``.
        lessons: how many lessons a row has before the questions; 0 draws it for each row.
        about: which language is asked, from 1; 0 asks about all that a row gave.
    """

    spec: LanguagesSpec = field(default_factory=LanguagesSpec)
    lessons: int = 0
    about: int = 0

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return self.spec.vocab_size

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        rng = random.Random(f"{seed}/{index}")
        rows = make_languages(rng, batch_size, self.spec, length, lessons=self.lessons, about=self.about)
        return Batch.from_labels(*rows)
