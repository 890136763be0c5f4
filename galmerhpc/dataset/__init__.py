"""From the preview service to batches: scrape, raw shards, preprocess, training shards."""
