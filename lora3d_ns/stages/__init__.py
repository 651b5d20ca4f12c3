"""The stages of a reconstruction, each kept on disk under a key of all that it depends on."""
