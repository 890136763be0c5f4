"""Networks: uint8 images in, labels in their own units out."""
