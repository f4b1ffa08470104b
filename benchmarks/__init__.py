"""The PPO trainer side by side with TRL's, the same work in turn."""
