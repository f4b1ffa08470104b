"""Backup, restore, doctor, garbage collection."""
