"""Layers that own the slow weights: ``forward(x, state, ...) -> Reading(y, state, surprise)``."""
