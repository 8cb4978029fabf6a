"""Raw records to trusted records: sources, resolve, dedupe, split, agreement, files. No torch."""
