"""Blocks of rows: what an expansion in z holds does not grow with their number."""

import subprocess
import sys

import pytest

# In a process of its own, whose largest size so far is told. Without blocks this took 1.5 GB for 12 MB of x.
SCRIPT = """
import resource
import numpy as np
from glmvae import Affine, Posterior, elbo_taylor
from glmvae.families import Bernoulli

def largest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

x = np.zeros((4000, 784), np.float32)
q = Posterior(np.zeros((4000, 5), np.float32), np.eye(5, dtype=np.float32)[None])
decoder = Affine(np.ones((784, 5), np.float32), np.zeros(784, np.float32))
elbo_taylor(decoder, x[:1000], Posterior(q.mean[:1000], q.covariance), Bernoulli())
before = largest()
elbo_taylor(decoder, x, q, Bernoulli()).block_until_ready()
print(largest() - before)
"""


@pytest.mark.any_precision
def test_taylor_holds_no_more_for_more_rows():
    child = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    assert float(child.stdout) < 100  # MB
