"""What every command shares: its argument parser, its log, its files, its compiled programs."""
