"""One module per peer, each with `build(job) -> Trainer`; run one with `python benchmarks/speed/peer.py NAME`."""
