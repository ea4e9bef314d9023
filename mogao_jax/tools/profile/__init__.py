"""What a training step costs on this machine, and where the time goes (`mogao profile`)."""
