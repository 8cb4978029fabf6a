"""MLflow's runs: one a stage, what it writes, and what another machine brings back."""
