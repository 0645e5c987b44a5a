"""Rules for choosing prompts and for correcting advantages by the capability: the paper's and alternatives."""
