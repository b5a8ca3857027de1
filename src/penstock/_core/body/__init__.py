"""What the body of an answer tells while it goes by."""
