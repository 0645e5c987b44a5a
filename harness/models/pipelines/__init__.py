import logging

# peft imports bitsandbytes, which warns on some processors of a faster kernel that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
