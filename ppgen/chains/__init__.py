"""Markov chains of latents, z_1 → ... → z_0 → x: what a diffusion model is."""
