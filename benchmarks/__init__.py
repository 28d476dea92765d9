"""What the closed form saves, how far it can be carried, and what nets make of it.

Run ``python -m benchmarks`` from a clone (``--help`` lists the options). It has three pages:

``optimum``  the analytic optimum of L-hat against the same model trained with Adam (``closed_form`` times
             :func:`glmvae.fit`, ``affine_training`` trains)
``refined``  the paper's L-hat, the tightened bound, the exact optimum and a trained net (``peers``: other libraries)
``nets``     Flax nets from three starts, their activities over beta, and the speed of a step (``speed``)

``problems`` loads the data, ``timed`` trains nets with a clock, ``report`` writes what every page writes.
"""
