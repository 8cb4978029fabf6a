"""MLflow's registry: versions of models, what was decided about them, and which are in use."""
