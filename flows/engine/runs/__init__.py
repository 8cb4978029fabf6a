"""Runs on this machine: a folder each, in it a folder for each stage.

settings        what a person chooses a run's settings by
folder          the run's folder: found, begun, taken up again, with its settings
locks           who may work on a run or a stage, and who may delete it
stage_folder    a stage's folder: its result, done once for the same inputs
in_prefect      which flow run works on which run, and what it is called
own_files       which files of a run's folder the pipeline wrote, and their deletion
overview        what the runs of a folder came to, listed and compared
needed          why a run must stay
cleaning        which runs go, and when
"""
