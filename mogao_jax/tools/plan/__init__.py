"""What a config costs on a machine that is not at hand: memory, communication, time."""
