"""The log joint as a function of one vector, and what samplers ask of it: leapfrogs, starts, normal approximations."""
