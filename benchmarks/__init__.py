"""What the closed form saves, how far it can be carried, what nets make of it, and what all that costs.

Run ``python -m benchmarks`` from a clone (``--help`` lists the options). Its pages:

``optimum``     the analytic optimum of L-hat against the same model trained with Adam (``closed_form`` times
                :func:`glmvae.fit`, ``affine_training`` trains)
``refined``     the paper's L-hat, the tightened bound, the exact optimum and a trained net (``contest``: beside
                ``peers``, other libraries)
``nets``        Flax nets from three starts, their activities over beta, and the speed of a step (``speed``)
``comparison``  from a table to factors, a held-out score and a plot, beside other libraries (``from_table``)
``selection``   how often a planted number of latent units is found, beside logisticpca
``first_call``  what a fresh process waits for (``fresh`` is that process)
``under_load``  the closed form beside busy processes
``full_size``   the exact optimum of all of MNIST, by seconds

``reproduce`` is a command of its own: the paper's simulations at full length.
``problems`` loads the data, ``timing`` has every clock, ``timed_training`` trains nets with one, ``packages`` imports
what is optional, ``report`` writes what every page writes.
"""
