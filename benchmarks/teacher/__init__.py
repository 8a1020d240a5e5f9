"""Every way to learn without velocities, beside the teacher that has them: `python -m benchmarks.teacher`."""
