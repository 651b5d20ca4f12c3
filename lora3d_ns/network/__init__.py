"""Two-view networks behind one small protocol."""
