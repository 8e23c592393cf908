"""What is claimed? Definitions (score, placement, hardware), statements and their derivations."""
