"""Training of the tiny frozen encoders that ship with the package (`mogao encoders`)."""
