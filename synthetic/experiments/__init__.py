"""One module for each exhibit: grid, measure, summarise."""
