"""What commands share: their flags, and what they show and write."""
