"""Checks whether this machine can run a profile, made before anything is downloaded, loaded or trained."""
