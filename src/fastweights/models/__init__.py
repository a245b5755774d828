"""Language models made of the layers."""
