"""Base, SFT and policy side by side on held-out prompts."""
