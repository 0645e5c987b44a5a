"""Rules beside the paper's: which prompt to train on, and how capability corrects advantages. Only torch is needed."""
