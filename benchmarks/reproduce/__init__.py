"""The paper's simulations at full length (sections 4.1, 4.2, appendix B) and what the new starts change.

Run ``python -m benchmarks reproduce`` from a clone (``--help`` lists the options). A setup is one net trained once:

``setups``   which there are, and when each is looked at
``library``  everything that is asked of :mod:`glmvae`
``runner``   trains a setup from wherever it was left, and writes its result
``measures`` numbers from stored results; ``tables``, ``claims`` and ``figures`` show them; ``page`` is the manual's
``command``  the options
"""
