"""Reference draws: chains of Hamiltonian Monte Carlo on the traced log joint, and where they begin."""
