"""Four models, recall and parity, in ten to twenty minutes on two cores.

    fastweights compare compare_quick --out results/compare_quick

Recall is what memories do that bind a value to its key, within fewer steps than attention without a convolution needs;
parity is what neither attention nor memories with eigenvalues in [0, 1] can, and an LSTM or negative eigenvalues can.
"""

from __future__ import annotations

from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import mqar, parity
from fastweights.models.baselines import CONTENDERS


def comparison() -> Comparison:
    """Titans as memory alone beside a Transformer++, Gated DeltaNet with negative eigenvalues and an LSTM."""
    names = ("lmm", "transformer++", "gated_deltanet_negative", "lstm")
    return Comparison(models={name: CONTENDERS[name] for name in names}, contests={"mqar": mqar(), "parity": parity()})
