"""Imitation learning from experts that PPO trained, in percent of the expert: `python -m benchmarks.imitation`."""
