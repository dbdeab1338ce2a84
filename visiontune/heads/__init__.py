"""What sits on a backbone."""
