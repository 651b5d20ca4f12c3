"""What `lora3d_ns.images` is made of: finding and decoding files, EXIF, masks, known cameras."""
