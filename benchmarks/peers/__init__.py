"""What octray is held against, written the way most people would."""
