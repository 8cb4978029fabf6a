"""The RLHF core: stages that run, and can be tested, without any orchestrator."""
