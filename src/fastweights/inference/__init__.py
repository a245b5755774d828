"""Using a trained model: reading streams into its memory, asking, generating, and the memory file."""
