"""What became of some photos, for a person: one self-contained page, and the same facts as JSON."""
