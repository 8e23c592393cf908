"""The pictures: a module for each exhibit, of the same name as its experiment; one style for all."""
