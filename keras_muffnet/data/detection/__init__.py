"""Images with boxes: annotations, sources, SSD's augmentation, the feed."""
