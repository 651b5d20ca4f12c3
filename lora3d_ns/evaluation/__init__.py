"""How good a reconstruction is, measured against truth."""
