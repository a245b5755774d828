"""Text in, tokens out: reading files of any size, tokenizers, and the books that are shipped with the package."""
