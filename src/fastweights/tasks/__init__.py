"""Generated tasks with their exact prompts and metrics: needles in haystacks, associative recall."""
