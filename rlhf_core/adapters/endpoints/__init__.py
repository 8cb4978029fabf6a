"""Models behind somebody else's server: judges that talk, scorers, samplers."""
