"""One file a stage, and what stages are made of in folders by subject.

Each stage is a function from settings and references to one result; no stage imports another, but
every one that trains or decides may ask ``evaluate``. ``preflight`` refuses before the first what
can be known to be wrong. Below them, each importing only those after it:

    project       the folder that `rlhf init` makes
    training      one training: its job, followers, memory, rewards, choice of a checkpoint
    distributed   the same in several processes and on several nodes
    evaluation    who is compared by whom, and the verdict
    labels        votes: which pairs are asked about, of people and of an AI judge
    versions      datasets published, compared, withdrawn, brought back
    preparation   raw rows to a dataset
    models        the base model, records as tokens, what models make of texts, seeds
"""
