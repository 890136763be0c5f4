"""Distributed training on simulated galaxy mergers: scrape, shard, train, evaluate."""

__version__ = "0.1.0"
