"""Checks for the first minutes on a GPU: are its results those of the CPU, in the memory and time expected?"""
