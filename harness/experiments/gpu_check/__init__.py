"""The first minutes on a GPU: does this machine compute what the CPU's tests say, in the memory and time expected?"""
