"""What the closed form saves: the analytic optimum of L-hat against the same model trained with Adam.

Run ``python -m benchmarks`` from a clone (``--help`` lists the options). Modules: ``problems`` loads the data,
``closed_form`` times :func:`glmvae.fit`, ``training`` trains the same affine model on the same objective, ``report``
writes the table and the JSON file, ``figure`` the picture.
"""
