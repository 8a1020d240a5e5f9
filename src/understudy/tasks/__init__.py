"""Our own tasks, batched in torch: one file each, one entry in `envs/registry.py`."""
