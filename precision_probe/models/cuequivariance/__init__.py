"""What is different in cuEquivariance while a model is built or loaded. Imports the package's own modules."""
