"""The demo world: a small town's help desk with a known gold preference."""
