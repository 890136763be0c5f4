"""Networks: from uint8 images to labels in their own units."""
