"""Collections in Label Studio: opened, waited for, and read back."""
