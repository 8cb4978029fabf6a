"""A project of one's own: the folder of settings, templates and documents that is begun with."""
