"""One training of SFT, reward model, judge or policy, around what ``trainers`` compute."""
