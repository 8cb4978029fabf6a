"""Datasets outside: their versions with DVC and git, their checks by Great Expectations."""
