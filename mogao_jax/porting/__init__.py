"""Checkpoints of others in, and back out: key tables, safetensors folders, streaming."""
