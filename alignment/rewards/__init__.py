"""What scores a response: the reward model, rules, and the safety layer."""
