"""The outside systems, a folder each: nobody else knows their libraries and interfaces.

    registry    MLflow's registry: models and their versions, verdicts, releases, looks
    tracking    MLflow's runs: metrics, files, records, copies of checkpoints; and its client
    datasets    DVC and git, Great Expectations and its pages
    labelling   tools in which people vote: Label Studio
    endpoints   models behind somebody else's server: an AI judge, a scorer, vLLM as a sampler
    serving     what we answer as a server, the way OpenAI's clients ask

Beside them lies what several use: ``settings`` (the environment), ``retries`` and
``retry_headers`` (how often and how late is asked again), ``http_client`` (JSON over HTTP), ``hub``
(a model hub); and ``pyfunc_model``, whose name every registered model holds.
"""
