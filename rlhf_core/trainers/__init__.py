"""SFT, reward model, DPO and PPO: one ``fit_*`` each, top to bottom."""
