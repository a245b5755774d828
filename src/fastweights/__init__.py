"""fastweights: sequence models whose memory keeps learning while they read."""

from __future__ import annotations

__version__ = "0.1.0"
