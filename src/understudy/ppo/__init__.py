"""The PPO core: losses, returns, rollout, update."""
