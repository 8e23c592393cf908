"""One module per exhibit, each with grid, measure and summarise [figures/catalogue.py]."""
