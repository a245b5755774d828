"""Generated tasks with their exact prompts and metrics: needles, facts in books, recall, state tracking."""
