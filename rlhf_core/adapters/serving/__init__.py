"""A model as a server of OpenAI's interface, and what it keeps of the answers."""
