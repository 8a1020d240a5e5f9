"""What PPO, environments and files build on: capture, schedules, checks, random streams. No reinforcement learning."""
