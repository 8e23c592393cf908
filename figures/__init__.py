"""The catalogue of exhibits, their drawings, and their committed results (`figures/data/`)."""
