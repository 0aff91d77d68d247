"""What a chain of Gaussian conditionals adds: its terms by time, samplers, the ODE, imputation, path weights."""
