"""Which claims hold in the setting of the theory? One module for each exhibit: grid, measure, summarise."""
