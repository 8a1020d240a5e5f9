"""What training with nothing said scores, beside Stable-Baselines3: `python -m benchmarks.defaults`."""
