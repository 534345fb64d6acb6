"""What it means: the nouns, the verdicts and their wording. The standard library only."""
