"""Measuring trained models: needles in long documents, and cases of one's own."""
