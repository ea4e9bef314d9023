"""What a config costs on a machine you do not have: memory, communication, time."""
