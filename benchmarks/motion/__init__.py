"""Does a motion prior take over a gait, and what does the task's reward lose? `python -m benchmarks.motion`."""
