"""Data-parallel training over Horovod."""
