"""`lora3d benchmark gpu`: the CUDA path proved and measured, in parts that stand for themselves."""
