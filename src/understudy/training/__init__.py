"""The training loop: budget, evaluation, logging, checkpoints, and how a training ends."""
