"""What makes the policy from SFT: PPO, DPO, RLOO, best-of-n."""
