r"""Along the path of the draw where a latent has a reparametrization, by the score function where it has none.

    z = g(ε, φ):    ∇_φ E_q f(z, φ) = E_ε [∂f/∂z ∂g/∂φ + ∂f/∂φ]
    else:           E_q [f ∇_φ log q(z) + ∂f/∂φ], f less its mean over the other draws

Sources: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114); the score function's are in
`ppgen.inference.bounds`.
"""

from ppgen.draws import one_draw as draw

__all__ = ["draw"]

SUMMARY = "reparametrized where a latent can be, the score function elsewhere"
DRAWS = 1
PATHWISE = True
