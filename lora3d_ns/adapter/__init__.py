"""LoRA adapters: a network calibrated to one scene, in a few megabytes beside its unchanged base."""
