"""Models as stages of every subject use them: loaded, seeded, given records, asked about texts."""
