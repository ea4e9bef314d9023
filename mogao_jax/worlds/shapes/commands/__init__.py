"""The commands of the embedded world: `mogao eval shapes`, `mogao encoders`."""
