"""fastweights: sequence models whose memory keeps learning while they read."""

__version__ = "0.1.0"
