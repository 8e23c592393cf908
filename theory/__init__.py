"""What is claimed: definitions (score, placement, hardware), statements and derivations."""
