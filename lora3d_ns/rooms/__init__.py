"""Procedural furnished rooms with exact truth: what the bundled network is trained on and the demo runs on."""
