"""Scoring requests as they come.

::

    http/         bodies, tokens, limits, connections: POST /v1/rank
    features/     what is asked, and what is known of the past at that moment
    lanes/        foundation model, online store and experts, a thread each, and the ladder between them
    models/       snapshots and experts as trained, in sets that fit together and are exchanged whole
    logs/         engagements that came in, vectors computed, what was served: what experts train on
    precision/    fewer bits, layer by layer, within a bound
    speculation/  embeddings of pairs before they are asked for
    service       all of it put together; deploy: behind uvicorn or Ray Serve
"""
