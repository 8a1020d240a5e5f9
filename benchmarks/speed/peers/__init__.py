"""One module per peer, each with `build(job) -> Trainer`; run one with `python -m benchmarks.speed.peer NAME`."""
